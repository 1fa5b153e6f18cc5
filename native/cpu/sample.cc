// Chooses tokens (abi/ops/sample.ts). Probabilities are f64 throughout; candidates are ordered by logit, then by id.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "parallel.h"

namespace ingot::cpu::INGOT_ISA {
namespace {

struct Candidate {
  float logit;
  int32_t id;
};
struct Better {
  bool operator()(const Candidate& a, const Candidate& b) const {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
  }
};

// NaN ranks as impossible.
template <class T>
inline T logit_of(T z) { return z == z ? z : T{} - kInfinity; }

// e^x for x <= 0 within 2 ulp, of a double or of a vector of them; 0 below -708.
template <class T, class Bits>
inline T exp_f64(T x) {
  constexpr double shift = 0x1.8p52;
  const T y = x < T{} - 708 ? T{} - 708 : x;
  const T n = (y * 1.4426950408889634 + shift) - shift;
  const T r = (y - n * 0x1.62e42fee00000p-1) - n * 0x1.a39ef35793c76p-33;
  T power = T{} + 1 / 6227020800.0;  // the Taylor series to r^13, |r| < 0.35
  power = power * r + 1 / 479001600.0;
  power = power * r + 1 / 39916800.0;
  power = power * r + 1 / 3628800.0;
  power = power * r + 1 / 362880.0;
  power = power * r + 1 / 40320.0;
  power = power * r + 1 / 5040.0;
  power = power * r + 1 / 720.0;
  power = power * r + 1 / 120.0;
  power = power * r + 1 / 24.0;
  power = power * r + 1 / 6.0;
  power = power * r + 1 / 2.0;
  power = power * r + 1.0;
  power = power * r + 1.0;
  const Bits exponent = as<Bits>(n + (shift + 1023)) << 52;
  return x < T{} - 708 ? T{} : power * as<T>(exponent);
}

// Unnormalised probability of a logit: 1 for the largest, also where that is infinite.
template <class T, class Bits>
inline T weight_of(T z, double most, double temperature) {
  const T power = exp_f64<T, Bits>((z - most) / temperature);
  return z == T{} + most ? T{} + 1.0 : power;
}
inline double weight_of(float z, float most, double temperature) {
  return weight_of<double, uint64_t>(double(z), double(most), temperature);
}

float largest(const float* z, size_t n) {
  Vec most = set(-kInfinity);
  for (size_t i = 0; i < n; i += kLanes) {
    const size_t count = n - i < kLanes ? n - i : kLanes;
    const Vec v = load_n(z + i, count);
    most = max(if_less(lane_index(), set(float(count)), v, set(-kInfinity)), most);
  }
  return reduce_max(most);
}

// Sum of the weights of n <= kChunk logits: eight partial sums, by index modulo 8.
constexpr size_t kChunk = 1024;
double chunk_weight(const float* z, size_t n, float most, double temperature) {
  constexpr size_t lanes = 8 / kParts;
  typedef double Wide __attribute__((vector_size(64 / kParts)));
  typedef uint64_t WideBits __attribute__((vector_size(64 / kParts)));
  typedef float Narrow __attribute__((vector_size(32 / kParts)));
  Wide parts[kParts] = {};
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int part = 0; part < kParts; ++part) {
      const Wide logits = __builtin_convertvector(peek<Narrow>(z + i + size_t(part) * lanes), Wide);
      parts[part] += weight_of<Wide, WideBits>(logit_of(logits), double(most), temperature);
    }
  }
  double sums[8];
  std::memcpy(sums, parts, sizeof sums);
  for (; i < n; ++i) sums[i % 8] += weight_of(logit_of(z[i]), most, temperature);
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

double total_weight(const float* z, size_t n, float most, double temperature) {
  double total = 0;
  for (size_t i = 0; i < n; i += kChunk) total += chunk_weight(z + i, std::min(kChunk, n - i), most, temperature);
  return total;
}

// The k best of n logits, unordered but for being the first k; `found` holds min(2 k, n) candidates. Returns min(k, n).
size_t select_best(const float* z, size_t n, size_t k, Candidate* found) {
  k = std::min(k, n);
  if (k == 0) return 0;
  const size_t capacity = std::min(2 * k, n);
  size_t count = 0;
  float least = -kInfinity;  // once k are found: no later id below or at it can enter
  bool full = false;
  for (size_t i = 0; i < n; ++i) {
    const float logit = logit_of(z[i]);
    if (full && !(logit > least)) continue;
    found[count++] = {logit, int32_t(i)};
    if (count < capacity || k == n) continue;
    std::nth_element(found, found + (k - 1), found + count, Better{});
    least = found[k - 1].logit;
    full = true;
    count = k;
  }
  if (count > k) std::nth_element(found, found + (k - 1), found + count, Better{});
  return k;
}

// Philox4x32-10 (Salmon et al., 2011): 53 bits for (seed, position), as a fraction of 1.
double uniform(uint32_t seed_low, uint32_t seed_high, uint32_t position) {
  uint32_t x[4] = {position, 0, 0, 0}, key[2] = {seed_low, seed_high};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(0xd2511f53) * x[0], b = uint64_t(0xcd9e8d57) * x[2];
    const uint32_t next[4] = {uint32_t(b >> 32) ^ x[1] ^ key[0], uint32_t(b), uint32_t(a >> 32) ^ x[3] ^ key[1],
                              uint32_t(a)};
    std::memcpy(x, next, sizeof x);
    key[0] += 0x9e3779b9;
    key[1] += 0xbb67ae85;
  }
  return double(uint64_t(x[0]) << 21 ^ uint64_t(x[1] >> 11)) * 0x1p-53;
}

// Tokens of a history and how often each was put out: a hash table of at least twice as many slots, a power of two.
struct Seen {
  int32_t token;  // -1: an empty slot
  uint32_t outputs;
};
size_t seen_slots(const SampleParams& p) {
  size_t slots = 2;
  while (slots < 2 * size_t(p.history_count)) slots *= 2;
  return slots;
}

// Candidates that top_p and min_p look at before they look at all: nearly always enough.
constexpr size_t kFirst = 1024;

struct Sampler {
  const Step& step;
  size_t vocab;

  bool adjusts(const SampleParams& p) const {
    return p.bias_count || (p.history_count && (p.repetition_penalty != 1 || p.presence_penalty != 0 ||
                                                p.frequency_penalty != 0));
  }

  bool filters(const SampleParams& p) const {
    return p.temperature > 0 && (p.top_k || p.top_p < 1 || p.min_p > 0);
  }

  // Bias and penalties, in place; costs the history, not the vocabulary.
  void adjust(const SampleParams& p, float* z, Seen* seen, size_t slots) const {
    for (uint32_t i = 0; i < p.bias_count; ++i) {
      const BiasEntry& entry = step.bias_entries[p.bias_start + i];
      if (entry.token < vocab) z[entry.token] += entry.bias;
    }
    for (size_t i = 0; i < slots; ++i) seen[i] = {-1, 0};
    for (uint32_t i = 0; i < p.history_count; ++i) {
      const int32_t token = step.history_ids[p.history_start + i];
      if (size_t(token) >= vocab) continue;
      size_t slot = uint32_t(token) * 0x9e3779b1u % slots;
      while (seen[slot].token != token && seen[slot].token != -1) slot = (slot + 1) % slots;
      seen[slot].token = token;
      seen[slot].outputs += i >= p.history_prompt;
    }
    for (size_t i = 0; i < slots; ++i) {
      if (seen[i].token < 0) continue;
      float& logit = z[seen[i].token];
      logit = logit > 0 ? logit / p.repetition_penalty : logit * p.repetition_penalty;
      if (seen[i].outputs) logit -= p.presence_penalty + p.frequency_penalty * float(seen[i].outputs);
    }
  }

  int32_t greedy(const float* z) const {
    float most = -kInfinity;
    size_t best = 0;  // the first chunk that holds the largest
    for (size_t i = 0; i < vocab; i += kChunk) {
      const float found = largest(z + i, std::min(kChunk, vocab - i));
      if (found > most) most = found, best = i;
    }
    while (best + 1 < vocab && logit_of(z[best]) != most) ++best;
    return int32_t(best);
  }

  // Without filters: over all tokens, in the order of their ids.
  int32_t draw_any(const float* z, double temperature, double u, double* chunks) const {
    const float most = largest(z, vocab);
    const size_t count = ceil_div(vocab, kChunk);
    double total = 0;
    for (size_t c = 0; c < count; ++c) {
      chunks[c] = chunk_weight(z + c * kChunk, std::min(kChunk, vocab - c * kChunk), most, temperature);
      total += chunks[c];
    }
    const double target = u * total;
    double before = 0;
    size_t chunk = 0;
    while (chunk + 1 < count && before + chunks[chunk] <= target) before += chunks[chunk++];
    const size_t begin = chunk * kChunk, end = std::min(begin + kChunk, vocab);
    size_t last = begin;
    for (size_t i = begin; i < end; ++i) {
      const double weight = weight_of(logit_of(z[i]), most, temperature);
      if (weight > 0) last = i;
      before += weight;
      if (before > target) return int32_t(i);
    }
    return int32_t(last);
  }

  // How many of the best n candidates top_p and min_p keep, at least one; sorts those and sums their weights.
  size_t keep(const SampleParams& p, Candidate* found, size_t n, float most, double enough, double& kept) const {
    size_t sorted = 0, size = 0;
    kept = 0;
    while (size < n && (size == 0 || kept < enough)) {  // a subnormal top_p makes enough 0
      if (size == sorted) {
        sorted = std::min(n, std::max(size_t(64), sorted * 8));
        if (sorted < n) std::nth_element(found + size, found + sorted, found + n, Better{});
        std::sort(found + size, found + sorted, Better{});
      }
      const double weight = weight_of(found[size].logit, most, double(p.temperature));
      if (size > 0 && weight < double(p.min_p)) break;
      kept += weight;
      ++size;
    }
    return size;
  }

  // With top_k, top_p or min_p: each keeps a prefix of the candidates from best to worst.
  int32_t draw_best(const SampleParams& p, const float* z, double u, Candidate* found) const {
    const double temperature = double(p.temperature);
    const float most = largest(z, vocab);
    const size_t limit = p.top_k ? std::min(size_t(p.top_k), vocab) : vocab;
    size_t n = select_best(z, vocab, p.top_k ? limit : kFirst, found);
    double enough = kInfinity, kept = 0;
    if (p.top_p < 1) {
      double total = 0;
      if (limit == vocab) total = total_weight(z, vocab, most, temperature);
      else for (size_t i = 0; i < n; ++i) total += weight_of(found[i].logit, most, temperature);
      enough = double(p.top_p) * total;
    }
    size_t size = keep(p, found, n, most, enough, kept);
    if (size == n && n < limit) {  // the first few were not enough
      n = select_best(z, vocab, limit, found);
      size = keep(p, found, n, most, enough, kept);
    }
    double sum = 0;
    for (size_t i = 0; i < size; ++i) {
      sum += weight_of(found[i].logit, most, temperature);
      if (sum > u * kept) return found[i].id;
    }
    return found[size - 1].id;
  }

  int32_t choose(const SampleParams& p, const float* z, Candidate* found, double* chunks) const {
    if (!(p.temperature > 0)) return greedy(z);
    const double u = uniform(p.seed_low, p.seed_high, p.position);
    if (filters(p)) return draw_best(p, z, u, found);
    return draw_any(z, double(p.temperature), u, chunks);
  }
};

// What sampling a row takes beside its logits; sized for the most demanding row.
struct Workspace {
  size_t candidates = 0, slots = 0, logits = 0, chunks = 0;

  size_t bytes() const {
    return round_up(candidates * sizeof(Candidate) + slots * sizeof(Seen) + logits * 4 + chunks * 8, 64);
  }
  void fit(const Sampler& sampler, const SampleParams& p) {
    if (!(p.flags & kSampleFlagSample)) return;
    const size_t vocab = sampler.vocab, k = p.top_k ? p.top_k : vocab;
    if (sampler.filters(p)) candidates = std::max(candidates, std::min(2 * k, vocab));
    candidates = std::max(candidates, std::min(2 * size_t(kTopLogprobs), vocab));
    chunks = ceil_div(vocab, kChunk);
    if (!sampler.adjusts(p)) return;
    logits = round_up(vocab, 2);
    slots = std::max(slots, seen_slots(p));
  }
};

}  // namespace

void sample(const Context& context, const Call& call) {
  const Matrix& logits = call.inputs[op::sample::in_logits];
  const Matrix& tokens = call.outputs[op::sample::out_tokens];
  const Matrix& logprobs = call.outputs[op::sample::out_logprobs];
  const Matrix& top_tokens = call.outputs[op::sample::out_top_tokens];
  const Sampler sampler{context.step, call.as<op::sample::Params>().vocab};
  const size_t vocab = sampler.vocab;
  Workspace needs;
  for (size_t r = 0; r < logits.rows; ++r) needs.fit(sampler, context.step.sampling[r]);
  std::byte* memory = context.scratch.take<std::byte>(needs.bytes() * context.pool.threads());

  each_claimed(context, logits.rows, [&](size_t r, unsigned thread, None) {
    const SampleParams& p = context.step.sampling[r];
    int32_t *token = tokens.row<int32_t>(r), *top = top_tokens.row<int32_t>(r);
    float* logprob = logprobs.row<float>(r);
    *token = -1;
    std::fill_n(top, kTopLogprobs, -1);
    std::fill_n(logprob, 1 + kTopLogprobs, 0.0f);
    if (!(p.flags & kSampleFlagSample)) return;

    const float *raw = logits.row<float>(r), *z = raw;
    Candidate* found = reinterpret_cast<Candidate*>(memory + thread * needs.bytes());
    double* chunks = reinterpret_cast<double*>(found + needs.candidates);
    Seen* seen = reinterpret_cast<Seen*>(chunks + needs.chunks);
    if (sampler.adjusts(p)) {
      float* adjusted = reinterpret_cast<float*>(seen + needs.slots);
      std::memcpy(adjusted, raw, vocab * sizeof(float));
      sampler.adjust(p, adjusted, seen, seen_slots(p));
      z = adjusted;
    }
    *token = sampler.choose(p, z, found, chunks);
    if (!(p.flags & kSampleFlagLogprobs)) return;

    const float most = largest(raw, vocab);
    const double normalizer = double(most) + std::log(total_weight(raw, vocab, most, 1));
    logprob[0] = float(double(logit_of(raw[*token])) - normalizer);
    const size_t count = select_best(raw, vocab, std::min(p.top_logprobs, kTopLogprobs), found);
    std::sort(found, found + count, Better{});
    for (size_t i = 0; i < count; ++i) {
      top[i] = found[i].id;
      logprob[1 + i] = float(double(found[i].logit) - normalizer);
    }
  });
}

}  // namespace ingot::cpu::INGOT_ISA

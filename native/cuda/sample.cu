// Chooses tokens (abi/ops/sample.ts), in one launch: a block takes 4,096 logits of a row, and the block of a row that
// finishes last goes on alone. Candidates rank by a 64-bit key, best first: the logit's bits in descending order, then
// the id. Sums of probabilities are f64, always over the same runs in the same order.
#include <cstdint>

#include "launch.h"

namespace ingot::cuda {
namespace sampling {
namespace {

constexpr uint32_t kThreads = 512, kEach = 8, kChunk = kThreads * kEach, kWarps = kThreads / 32;
constexpr uint32_t kBatch = 2 * kThreads, kBins = 2048, kAll = 0xffffffff;
constexpr uint32_t kListed = 64;  // best candidates that a chunk lists for its row's last block
constexpr uint64_t kNone = ~uint64_t(0);

// What a block finds out about its chunk of a row.
struct Chunk {
  double raw_sum, weight;  // of e^(z - most) of the untouched logits, and at the row's temperature of the adjusted ones
  float raw_most, most;
  uint64_t best;  // key of the best adjusted one
};

struct Sampling {
  const float* logits;
  size_t stride;
  int32_t *tokens, *top_tokens;
  float* logprobs;
  size_t tokens_stride, top_stride, logprobs_stride;
  const SampleParams* params;
  const int32_t* history;
  const BiasEntry* biases;
  std::byte* workspace;  // of each row: a counter, its chunks, then lists of each: of adjusted and of untouched logits
  size_t row_bytes;
  uint32_t vocab, chunks;
};

// NaN ranks as impossible, and a negative zero as zero.
__device__ inline float logit_of(float z) { return z == z ? z + 0.0f : -INFINITY; }

__device__ inline uint64_t key_of(float z, uint32_t id) {
  const uint32_t bits = __float_as_uint(z);
  return uint64_t(~(bits ^ (bits >> 31 ? 0xffffffff : 0x80000000))) << 32 | id;
}
__device__ inline float logit_of_key(uint64_t key) {
  const uint32_t ordered = ~uint32_t(key >> 32);
  return __uint_as_float(ordered ^ (ordered >> 31 ? 0x80000000 : 0xffffffff));
}

// Unnormalised probability of a logit: 1 for the largest, also where that is infinite.
__device__ __noinline__ double weight_of(float z, float most, double temperature) {
  return z == most ? 1.0 : exp((double(z) - double(most)) / temperature);
}

__device__ inline bool draws(const SampleParams& p) { return p.temperature > 0; }
__device__ inline bool filters(const SampleParams& p) {
  return draws(p) && (p.top_k || p.top_p < 1 || p.min_p > 0);
}
__device__ inline bool adjusts(const SampleParams& p) {
  return p.bias_count || (p.history_count && (p.repetition_penalty != 1 || p.presence_penalty != 0 ||
                                              p.frequency_penalty != 0));
}

// Philox4x32-10 (Salmon et al., 2011): 53 bits for (seed, position), as a fraction of 1.
__device__ double uniform(const SampleParams& p) {
  uint32_t x0 = p.position, x1 = 0, x2 = 0, x3 = 0, k0 = p.seed_low, k1 = p.seed_high;
  for (int round = 0; round < 10; ++round) {
    const uint32_t a = __umulhi(0xd2511f53u, x0), b = __umulhi(0xcd9e8d57u, x2);
    const uint32_t y1 = 0xcd9e8d57u * x2, y3 = 0xd2511f53u * x0;
    x0 = b ^ x1 ^ k0;
    x2 = a ^ x3 ^ k1;
    x1 = y1;
    x3 = y3;
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  return double(uint64_t(x0) << 21 ^ uint64_t(x1 >> 11)) * 0x1p-53;
}

struct Shared {
  float z[kChunk];
  uint32_t seen[kChunk];  // of a token in the chunk: whether the history has it, and 2 times how often it was put out
  uint64_t batch[kBatch];
  uint32_t bins[kBins];
  uint64_t keys[kWarps];
  double sums[kWarps];
  uint32_t counts[kWarps];
  uint32_t flag, count;
};

struct Less {
  template <class T>
  __device__ T operator()(T a, T b) const { return a < b ? a : b; }
};
struct More {
  template <class T>
  __device__ T operator()(T a, T b) const { return a < b ? b : a; }
};
struct Sum {
  template <class T>
  __device__ T operator()(T a, T b) const { return a + b; }
};

template <class T, class F>
__device__ T warp_reduce(T x, F f) {
  for (int d = 16; d; d /= 2) x = f(x, __shfl_xor_sync(kAll, x, d));
  return x;
}
// Of all threads, for all of them; `scratch` is (kWarps).
template <class T, class F>
__device__ T reduce(T x, F f, T* scratch) {
  x = warp_reduce(x, f);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  T y = scratch[0];
  for (uint32_t i = 1; i < kWarps; ++i) y = f(y, scratch[i]);
  return y;
}
// Sum of x of all threads before this one, and of all.
template <class T>
__device__ T before(T x, T* scratch, T& total) {
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  T upto = x;
  for (uint32_t d = 1; d < 32; d *= 2) {
    const T lower = __shfl_up_sync(kAll, upto, d);
    if (lane >= d) upto += lower;
  }
  __syncthreads();
  if (lane == 31) scratch[warp] = upto;
  __syncthreads();
  T sum = 0;
  total = 0;
  for (uint32_t i = 0; i < kWarps; ++i) {
    if (i == warp) sum = total;
    total += scratch[i];
  }
  const T previous = __shfl_up_sync(kAll, upto, 1);
  return lane ? sum + previous : sum;
}

__device__ inline uint32_t* counter_of_row(const Sampling& s, uint32_t r) {
  return reinterpret_cast<uint32_t*>(s.workspace + r * s.row_bytes);
}
__device__ inline Chunk* chunks_of_row(const Sampling& s, uint32_t r) {
  return reinterpret_cast<Chunk*>(counter_of_row(s, r) + 2);
}

// Reads a chunk once: its best untouched logit, and its sum of e^(z - most), in f32 over the 256 logits of a warp.
__device__ void survey(const Sampling& s, Shared& m, uint32_t r, uint32_t chunk) {
  const uint32_t base = chunk * kChunk, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const float* logits = s.logits + r * s.stride + base;
  const bool whole = base + kChunk <= s.vocab && reinterpret_cast<uintptr_t>(logits) % 16 == 0;
  float z[kEach];
#pragma unroll
  for (uint32_t i = 0; i < kEach; i += 4) {
    const uint32_t at = i * kThreads + threadIdx.x * 4;
    if (whole) {
      const float4 x = *reinterpret_cast<const float4*>(logits + at);
      z[i] = logit_of(x.x);
      z[i + 1] = logit_of(x.y);
      z[i + 2] = logit_of(x.z);
      z[i + 3] = logit_of(x.w);
    } else {
#pragma unroll
      for (uint32_t j = 0; j < 4; ++j) z[i + j] = base + at + j < s.vocab ? logit_of(logits[at + j]) : -INFINITY;
    }
  }
  float most = z[0];
#pragma unroll
  for (uint32_t i = 1; i < kEach; ++i) most = fmaxf(most, z[i]);
  most = warp_reduce(most, More{});
  uint32_t id = kAll;
  float sum = 0;
#pragma unroll
  for (uint32_t i = kEach; i-- > 0;) {
    if (z[i] == most) id = base + i / 4 * 4 * kThreads + threadIdx.x * 4 + i % 4;
    sum += z[i] == most ? 1.0f : __expf(z[i] - most);
  }
  id = warp_reduce(id, Less{});
  sum = warp_reduce(sum, Sum{});
  if (lane == 0) {
    m.keys[warp] = key_of(most, id);
    m.sums[warp] = double(sum);
  }
  __syncthreads();
  if (warp) return;
  const uint64_t key = lane < kWarps ? m.keys[lane] : kNone;
  const uint64_t best = warp_reduce(key, Less{});
  const float top = logit_of_key(best);
  double part = lane < kWarps ? m.sums[lane] * weight_of(logit_of_key(key), top, 1) : 0;
  part = warp_reduce(part, Sum{});
  if (lane == 0) chunks_of_row(s, r)[chunk] = {part, 0, top, top, best};
}

// Whether this block is the row's last; then all that the others wrote may be read.
__device__ bool arrives_last(const Sampling& s, Shared& m, uint32_t r) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    m.flag = atomicAdd(counter_of_row(s, r), 1) + 1 == s.chunks;
    if (m.flag) *counter_of_row(s, r) = 0;
    __threadfence();
  }
  __syncthreads();
  return m.flag;
}

// The end of a row that wants its best token and nothing else, by one warp.
__device__ void finish_greedy(const Sampling& s, uint32_t r) {
  const uint32_t lane = threadIdx.x % 32;
  uint64_t best = kNone;
  for (uint32_t c = lane; c < s.chunks; c += 32) best = min(best, chunks_of_row(s, r)[c].best);
  best = warp_reduce(best, Less{});
  const float most = logit_of_key(best);
  double sum = 0;
  for (uint32_t c = lane; c < s.chunks; c += 32) {
    const Chunk& chunk = chunks_of_row(s, r)[c];
    sum += chunk.raw_sum * weight_of(chunk.raw_most, most, 1);
  }
  sum = warp_reduce(sum, Sum{});
  float* logprobs = s.logprobs + r * s.logprobs_stride;
  if (lane == 0) s.tokens[r * s.tokens_stride] = int32_t(uint32_t(best));
  if (lane <= kTopLogprobs) logprobs[lane] = lane ? 0 : float(double(most) - (double(most) + log(sum)));
  if (lane < kTopLogprobs) s.top_tokens[r * s.top_stride + lane] = -1;
}

// One row, for the blocks that share it.
struct Row {
  const Sampling& s;
  Shared& m;
  const uint32_t r;
  const SampleParams p;
  const float* const logits;
  const bool adjusted;

  __device__ Row(const Sampling& s, Shared& m, uint32_t r)
      : s(s), m(m), r(r), p(s.params[r]), logits(s.logits + r * s.stride), adjusted(adjusts(p)) {}

  __device__ Chunk* chunks() const { return chunks_of_row(s, r); }
  __device__ uint64_t* lists() const {
    return reinterpret_cast<uint64_t*>(chunks() + s.chunks) + (raw && adjusted ? s.chunks * kListed : 0);
  }

  // Logits of a chunk into z, in the order of ids; -infinity past the vocabulary. With `adjust`, biased and penalised.
  __device__ __noinline__ void load(uint32_t chunk, bool adjust) {
    const uint32_t base = chunk * kChunk, count = min(kChunk, s.vocab - base);
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < kChunk; i += kThreads) {
      m.z[i] = i < count ? logits[base + i] : -INFINITY;
      if (adjust) m.seen[i] = 0;
    }
    __syncthreads();
    if (adjust) {
      bias(base, count);
      penalise(base, count);
    }
    for (uint32_t i = threadIdx.x; i < kChunk; i += kThreads) m.z[i] = logit_of(m.z[i]);
    __syncthreads();
  }

  // The first entry of a token adds all of the token's, in order.
  __device__ void bias(uint32_t base, uint32_t count) {
    const BiasEntry* entries = s.biases + p.bias_start;
    for (uint32_t i = threadIdx.x; i < p.bias_count; i += kThreads) {
      const uint32_t token = entries[i].token;
      if (token - base >= count) continue;
      bool first = true;
      for (uint32_t j = 0; j < i && first; ++j) first = entries[j].token != token;
      if (!first) continue;
      float z = m.z[token - base];
      for (uint32_t j = i; j < p.bias_count; ++j)
        if (entries[j].token == token) z += entries[j].bias;
      m.z[token - base] = z;
    }
    __syncthreads();
  }

  __device__ void penalise(uint32_t base, uint32_t count) {
    for (uint32_t i = threadIdx.x; i < p.history_count; i += kThreads) {
      const uint32_t at = uint32_t(s.history[p.history_start + i]) - base;
      if (at >= count) continue;
      atomicOr(&m.seen[at], 1);
      if (i >= p.history_prompt) atomicAdd(&m.seen[at], 2);
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < count; i += kThreads) {
      const uint32_t seen = m.seen[i];
      if (!seen) continue;
      const float z = m.z[i], value = z > 0 ? z / p.repetition_penalty : z * p.repetition_penalty;
      const float penalty = __fadd_rn(p.presence_penalty, __fmul_rn(p.frequency_penalty, float(seen / 2)));
      m.z[i] = seen > 1 ? value - penalty : value;
    }
  }

  // What the row's options make of a chunk, beside what `survey` found.
  __device__ void refine(uint32_t chunk) {
    load(chunk, adjusted);
    float most = -INFINITY;
    uint64_t best = kNone;
    for (uint32_t i = threadIdx.x; i < kChunk; i += kThreads) {
      most = fmaxf(most, m.z[i]);
      if (chunk * kChunk + i < s.vocab) best = min(best, key_of(m.z[i], chunk * kChunk + i));
    }
    most = reduce(most, More{}, reinterpret_cast<float*>(m.counts));
    best = reduce(best, Less{}, m.keys);
    double weight = 0;
    if (draws(p)) {
      for (uint32_t i = threadIdx.x; i < kChunk; i += kThreads)
        if (chunk * kChunk + i < s.vocab) weight += weight_of(m.z[i], most, double(p.temperature));
      weight = reduce(weight, Sum{}, m.sums);
    }
    if (threadIdx.x == 0) {
      Chunk& found = chunks()[chunk];
      found.weight = weight;
      found.most = most;
      found.best = best;
    }
    if (filters(p)) list(chunk);
    if (p.top_logprobs && (adjusted || !filters(p))) {
      raw = true;
      if (adjusted) load(chunk, false);
      list(chunk);
      raw = false;
    }
  }

  // Lists the best candidates of the chunk in z.
  __device__ void list(uint32_t chunk) {
    find(Source::chunk, chunk, 0, kListed);
    for (uint32_t i = threadIdx.x; i < kListed; i += kThreads) lists()[chunk * kListed + i] = m.batch[i];
  }

  float most, raw_most;
  uint64_t best;
  double normalizer;

  __device__ void gather() {
    most = raw_most = -INFINITY;
    best = kNone;
    for (uint32_t c = threadIdx.x; c < s.chunks; c += kThreads) {
      const Chunk& chunk = chunks()[c];
      most = fmaxf(most, chunk.most);
      raw_most = fmaxf(raw_most, chunk.raw_most);
      best = min(best, chunk.best);
    }
    most = reduce(most, More{}, reinterpret_cast<float*>(m.counts));
    raw_most = reduce(raw_most, More{}, reinterpret_cast<float*>(m.counts));
    best = reduce(best, Less{}, m.keys);
    double sum = 0;
    for (uint32_t c = threadIdx.x; c < s.chunks; c += kThreads)
      sum += chunks()[c].raw_sum * weight_of(chunks()[c].raw_most, raw_most, 1);
    normalizer = double(raw_most) + log(reduce(sum, Sum{}, m.sums));
  }

  __device__ double chunk_weight(uint32_t c) const {
    return chunks()[c].weight * weight_of(chunks()[c].most, most, double(p.temperature));
  }

  // Without filters: over all tokens, in the order of their ids.
  __device__ uint32_t draw_any(double u) {
    double total = 0, sum = 0;
    for (uint32_t c = 0; c < s.chunks; ++c) total += chunk_weight(c);
    const double target = u * total;
    uint32_t chunk = 0;
    for (; chunk + 1 < s.chunks && sum + chunk_weight(chunk) <= target; ++chunk) sum += chunk_weight(chunk);
    load(chunk, adjusted);
    const uint32_t base = chunk * kChunk, count = min(kChunk, s.vocab - base);
    double weights[kEach], own = 0, all;
    for (uint32_t i = 0; i < kEach; ++i) {
      const uint32_t at = threadIdx.x * kEach + i;
      own += weights[i] = at < count ? weight_of(m.z[at], most, double(p.temperature)) : 0;
    }
    double upto = sum + before(own, m.sums, all);
    uint32_t first = kAll, possible = 0;
    for (uint32_t i = 0; i < kEach; ++i) {
      upto += weights[i];
      if (weights[i] > 0) possible = threadIdx.x * kEach + i;
      if (upto > target && weights[i] > 0 && first == kAll) first = threadIdx.x * kEach + i;
    }
    first = reduce(first, Less{}, m.counts);
    possible = reduce(possible, More{}, m.counts);
    return base + (first == kAll ? possible : first);
  }

  // Candidates in order of rank, up to kBatch at a time: `batch` holds `size` of them, the first of rank `rank`.
  uint32_t rank = 0, size = 0;
  uint64_t next = kNone;  // where the following batch starts
  bool raw = false;        // of the untouched logits
  enum class Source { row, chunk, lists };

  template <class F>
  __device__ void each_key(Source source, uint32_t chunk, uint64_t from, const F& f) {
    const auto chunk_keys = [&](uint32_t c) {
      for (uint32_t i = threadIdx.x; i < kChunk; i += kThreads) {
        const uint32_t id = c * kChunk + i;
        const uint64_t key = key_of(m.z[i], id);
        if (id < s.vocab && key >= from) f(key);
      }
    };
    __syncthreads();
    if (source == Source::chunk) {
      chunk_keys(chunk);
    } else if (source == Source::lists) {
      for (uint32_t i = threadIdx.x; i < s.chunks * kListed; i += kThreads)
        if (const uint64_t key = lists()[i]; key != kNone) f(key);
    } else if (adjusted && !raw) {
      for (uint32_t c = 0; c < s.chunks; ++c) {
        load(c, true);
        chunk_keys(c);
      }
    } else {
      for (uint32_t id = threadIdx.x; id < s.vocab; id += kThreads)
        if (const uint64_t key = key_of(logit_of(logits[id]), id); key >= from) f(key);
    }
    __syncthreads();
  }

  // Finds the best candidates from key `from` on, at least `wanted` (up to kBatch) where there are as many: digit by
  // digit, the end of the longest run that fits a batch.
  __device__ __noinline__ void find(Source source, uint32_t chunk, uint64_t from, uint32_t wanted) {
    uint64_t prefix = 0, end = kNone;
    uint32_t taken = 0;
    int shift = 64;
    for (bool enough = false; !enough && shift > 0;) {
      const int bits = min(shift, 11), above = shift;
      shift -= bits;
      for (uint32_t i = threadIdx.x; i < kBins; i += kThreads) m.bins[i] = 0;
      each_key(source, chunk, from, [&](uint64_t key) {
        if (above == 64 || key >> above == prefix) atomicAdd(&m.bins[key >> shift & ((1u << bits) - 1)], 1);
      });
      // The bins before the first that does not fit.
      uint32_t own[kBins / kThreads], sum = 0, total;
      for (uint32_t i = 0; i < kBins / kThreads; ++i) sum += own[i] = m.bins[threadIdx.x * (kBins / kThreads) + i];
      uint32_t upto = taken + before(sum, m.counts, total), full = kAll;
      uint32_t fits = taken;
      for (uint32_t i = 0; i < kBins / kThreads; ++i) {
        upto += own[i];
        if (upto > kBatch && full == kAll) full = threadIdx.x * (kBins / kThreads) + i;
        if (upto <= kBatch) fits = upto;
      }
      full = reduce(full, Less{}, m.counts);
      fits = reduce(fits, More{}, m.counts);
      if (full == kAll) {  // all of them
        if (above < 64) end = (prefix + 1) << above;
        enough = true;
      } else {
        prefix = prefix << bits | full;
        taken = fits;
        end = prefix << shift;
        enough = fits >= wanted;
      }
    }
    if (threadIdx.x == 0) m.count = 0;
    for (uint32_t i = threadIdx.x; i < kBatch; i += kThreads) m.batch[i] = kNone;
    each_key(source, chunk, from, [&](uint64_t key) {
      if (key < end) m.batch[atomicAdd(&m.count, 1)] = key;
    });
    size = m.count;
    next = end;
    sort();
  }

  __device__ void sort() {
    for (uint32_t run = 2; run <= kBatch; run *= 2)
      for (uint32_t d = run / 2; d; d /= 2) {
        __syncthreads();
        const uint32_t i = threadIdx.x / d * 2 * d + threadIdx.x % d;
        const uint64_t a = m.batch[i], b = m.batch[i + d];
        if (a > b == !(i & run)) {
          m.batch[i] = b;
          m.batch[i + d] = a;
        }
      }
    __syncthreads();
  }

  // The first batch, out of what the chunks list: as far as no chunk can have more.
  __device__ void first_batch(uint32_t wanted) {
    uint64_t bound = kNone;
    for (uint32_t c = threadIdx.x; c < s.chunks; c += kThreads)
      bound = min(bound, lists()[c * kListed + kListed - 1]);
    bound = reduce(bound, Less{}, m.keys);
    find(Source::lists, 0, 0, wanted);
    uint32_t within = 0;
    for (uint32_t i = threadIdx.x; i < size; i += kThreads) within += m.batch[i] <= bound;
    size = reduce(within, Sum{}, m.counts);
    if (bound != kNone) next = min(next, bound + 1);
    rank = 0;
  }

  // Calls f with each batch of the first `limit` candidates and how many of it count, until f returns false.
  template <class F>
  __device__ void sweep(uint32_t limit, uint32_t wanted, const F& f) {
    if (size == 0 || rank != 0) first_batch(min(wanted, kBatch));
    while (f(min(size, limit - rank)) && rank + size < limit && next != kNone) {
      rank += size;
      find(Source::row, 0, next, min(limit - rank, kBatch));
      if (size == 0) break;
    }
  }

  // Weights of two candidates of the batch, which count; their sum before this thread's is returned.
  __device__ double weigh(uint32_t count, double (&weights)[2], double& total) {
    for (uint32_t i = 0; i < 2; ++i) {
      const uint32_t at = 2 * threadIdx.x + i;
      weights[i] = at < count ? weight_of(logit_of_key(m.batch[at]), most, double(p.temperature)) : 0;
    }
    return before(weights[0] + weights[1], m.sums, total);
  }

  // With top_k, top_p or min_p: each keeps a prefix of the candidates from best to worst.
  __device__ uint32_t draw_best(double u) {
    const uint32_t limit = p.top_k ? min(p.top_k, s.vocab) : s.vocab, wanted = p.top_k ? limit : 64;
    double enough = INFINITY, weights[2], total;
    if (p.top_p < 1) {
      double sum = 0;
      if (limit == s.vocab) {
        for (uint32_t c = 0; c < s.chunks; ++c) sum += chunk_weight(c);
      } else {
        sweep(limit, wanted, [&](uint32_t count) {
          weigh(count, weights, total);
          sum += total;
          return true;
        });
      }
      enough = double(p.top_p) * sum;
    }
    double kept = 0;
    uint32_t keeps = 0;
    sweep(limit, wanted, [&](uint32_t count) {
      double sum = kept + weigh(count, weights, total);
      uint32_t out = count;  // the first that is not kept
      double at_out = kept + total;
      for (uint32_t i = 0; i < 2; ++i) {
        const uint32_t at = 2 * threadIdx.x + i;
        const bool stays = rank + at == 0 || (sum < enough && weights[i] >= double(p.min_p));
        if (at < out && !stays) {
          out = at;
          at_out = sum;
        }
        sum += weights[i];
      }
      const uint32_t first = reduce(out, Less{}, m.counts);
      keeps = rank + first;
      if (first < count && threadIdx.x == first / 2) m.sums[0] = at_out;
      __syncthreads();
      kept = first < count ? m.sums[0] : at_out;
      __syncthreads();
      return first == count;
    });
    const double target = u * kept;
    double sum = 0;
    uint32_t token = 0;
    sweep(keeps, min(keeps, kBatch), [&](uint32_t count) {
      double upto = sum + weigh(count, weights, total);
      uint32_t first = kAll;
      for (uint32_t i = 0; i < 2; ++i) {
        upto += weights[i];
        if (2 * threadIdx.x + i < count && upto > target && first == kAll) first = 2 * threadIdx.x + i;
      }
      first = reduce(first, Less{}, m.counts);
      token = uint32_t(m.batch[min(first, count - 1)]);
      sum += total;
      return first == kAll;
    });
    return token;
  }

  __device__ void finish() {
    gather();
    uint32_t token = uint32_t(best);
    if (draws(p)) token = filters(p) ? draw_best(uniform(p)) : draw_any(uniform(p));
    float* logprobs = s.logprobs + r * s.logprobs_stride;
    int32_t* top = s.top_tokens + r * s.top_stride;
    if (threadIdx.x == 0) {
      s.tokens[r * s.tokens_stride] = int32_t(token);
      logprobs[0] = float(double(logit_of(logits[token])) - normalizer);
    }
    uint32_t wanted = min(min(p.top_logprobs, kTopLogprobs), s.vocab);
    if (wanted) {
      if (adjusted || rank != 0 || size < wanted) size = 0;
      raw = true;
      sweep(wanted, wanted, [](uint32_t) { return false; });
    }
    for (uint32_t i = threadIdx.x; i < kTopLogprobs; i += kThreads) {
      top[i] = i < wanted ? int32_t(uint32_t(m.batch[i])) : -1;
      logprobs[1 + i] = i < wanted ? float(double(logit_of_key(m.batch[i])) - normalizer) : 0;
    }
  }
};

// Rows that ask for more keep their options in memory of the thread, which costs more than all else a greedy row does.
__device__ __noinline__ void refine_row(const Sampling& s, Shared& m, uint32_t r) { Row(s, m, r).refine(blockIdx.x); }
__device__ __noinline__ void finish_row(const Sampling& s, Shared& m, uint32_t r) { Row(s, m, r).finish(); }

__global__ void __launch_bounds__(kThreads, 3) choose(const __grid_constant__ Sampling s) {
  extern __shared__ __align__(16) std::byte memory[];
  Shared& m = *reinterpret_cast<Shared*>(memory);
  const uint32_t r = blockIdx.y;
  const SampleParams& p = s.params[r];
  const bool samples = p.flags & kSampleFlagSample, greedy = !draws(p) && !adjusts(p) && !p.top_logprobs;
  wait_for_inputs();
  let_next_start();
  if (!samples) {
    if (blockIdx.x) return;
    if (threadIdx.x == 0) s.tokens[r * s.tokens_stride] = -1;
    for (uint32_t i = threadIdx.x; i <= kTopLogprobs; i += kThreads) {
      s.logprobs[r * s.logprobs_stride + i] = 0;
      if (i) s.top_tokens[r * s.top_stride + i - 1] = -1;
    }
    return;
  }
  survey(s, m, r, blockIdx.x);
  if (!greedy) refine_row(s, m, r);
  if (!arrives_last(s, m, r)) return;
  if (!greedy) finish_row(s, m, r);
  else if (threadIdx.x < 32) finish_greedy(s, r);
}

uint32_t chunks_of(const Call& call) { return (call.as<op::sample::Params>().vocab + kChunk - 1) / kChunk; }
size_t row_bytes(uint32_t chunks) { return 8 + chunks * (sizeof(Chunk) + 2 * kListed * sizeof(uint64_t)); }

}  // namespace
}  // namespace sampling

size_t sample_workspace(const Device&, const Call& call) {
  return call.inputs[op::sample::in_logits].rows * sampling::row_bytes(sampling::chunks_of(call));
}

cudaError_t sample(const Context& context, const Call& call) {
  using namespace sampling;
  const Matrix& logits = call.inputs[op::sample::in_logits];
  const Matrix& tokens = call.outputs[op::sample::out_tokens];
  const Matrix& logprobs = call.outputs[op::sample::out_logprobs];
  const Matrix& top = call.outputs[op::sample::out_top_tokens];
  const uint32_t chunks = chunks_of(call);
  const Sampling s{logits.row<float>(0),  logits.stride / sizeof(float), tokens.row<int32_t>(0),
                   top.row<int32_t>(0),   logprobs.row<float>(0),        tokens.stride / sizeof(int32_t),
                   top.stride / sizeof(int32_t), logprobs.stride / sizeof(float), context.step.sampling,
                   context.step.history_ids, context.step.bias_entries,  context.workspace.data,
                   row_bytes(chunks), call.as<op::sample::Params>().vocab, chunks};
  if (cudaError_t error = cudaFuncSetAttribute(choose, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared)))
    return error;
  return launch(context, choose, {dim3(chunks, logits.rows), kThreads, sizeof(Shared)}, s);
}

}  // namespace ingot::cuda

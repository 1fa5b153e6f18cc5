// A row with options: biases, penalties, filters, draws and alternatives. Sums of probabilities are f64, always over
// the same runs in the same order.
#pragma once
#include "sample_block.h"

namespace ingot::cuda::sampling {

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
    if (likeliest(p) && (adjusted || !filters(p))) {
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
      logprobs[0] = reports(p) ? float(double(logit_of(logits[token])) - normalizer) : 0;
    }
    uint32_t wanted = min(min(likeliest(p), kTopLogprobs), s.vocab);
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

}  // namespace ingot::cuda::sampling

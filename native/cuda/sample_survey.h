// What a row needs whatever its options: a block reads a chunk of it once, and the last block ends a greedy one.
#pragma once
#include "sample_block.h"

namespace ingot::cuda::sampling {

// Reads a chunk once: its best untouched logit, and its sum of e^(z - most), in f32 over the 256 logits of a warp.
__device__ inline void survey(const Sampling& s, Shared& m, uint32_t r, uint32_t chunk) {
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
__device__ inline bool arrives_last(const Sampling& s, Shared& m, uint32_t r) {
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
__device__ inline void finish_greedy(const Sampling& s, uint32_t r) {
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
  const bool reported = lane == 0 && reports(s.params[r]);
  if (lane <= kTopLogprobs) logprobs[lane] = reported ? float(double(most) - (double(most) + log(sum))) : 0;
  if (lane < kTopLogprobs) s.top_tokens[r * s.top_stride + lane] = -1;
}

}  // namespace ingot::cuda::sampling

// What the kernel that samples is given, how logits rank and weigh, and what a row's options ask for. Candidates rank
// by a 64-bit key, best first: the logit's bits in descending order, then the id.
#pragma once
#include <cstdint>

#include "launch.h"

namespace ingot::cuda::sampling {

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
static __device__ __noinline__ double weight_of(float z, float most, double temperature) {
  return z == most ? 1.0 : exp((double(z) - double(most)) / temperature);
}

__device__ inline bool draws(const SampleParams& p) { return p.temperature > 0; }
// Rows report logprobs, and those of the likeliest tokens, only where they ask.
__device__ inline bool reports(const SampleParams& p) { return p.flags & kSampleFlagLogprobs; }
__device__ inline uint32_t likeliest(const SampleParams& p) { return reports(p) ? p.top_logprobs : 0; }
__device__ inline bool filters(const SampleParams& p) {
  return draws(p) && (p.top_k || p.top_p < 1 || p.min_p > 0);
}
__device__ inline bool adjusts(const SampleParams& p) {
  return p.bias_count || (p.history_count && (p.repetition_penalty != 1 || p.presence_penalty != 0 ||
                                              p.frequency_penalty != 0));
}

// Philox4x32-10 (Salmon et al., 2011): 53 bits for (seed, position), as a fraction of 1.
__device__ inline double uniform(const SampleParams& p) {
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

__device__ inline uint32_t* counter_of_row(const Sampling& s, uint32_t r) {
  return reinterpret_cast<uint32_t*>(s.workspace + r * s.row_bytes);
}
__device__ inline Chunk* chunks_of_row(const Sampling& s, uint32_t r) {
  return reinterpret_cast<Chunk*>(counter_of_row(s, r) + 2);
}

}  // namespace ingot::cuda::sampling

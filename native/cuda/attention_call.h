// What attention's kernels share: the call, where rows and pages lie, and how a head is normed and turned.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "launch.h"

namespace ingot::cuda::paged {

constexpr uint32_t kPage = kBlockTokens, kTile = 64, kSplit = 256;  // positions
constexpr uint32_t kAll = 0xffffffff;                               // lanes

// One call, as kernels take it. Strides count elements.
struct Attention {
  const float *q, *k, *v;
  size_t q_stride, k_stride, v_stride;
  std::byte* out;
  size_t out_stride;  // bytes
  DType out_dtype, dtype;
  const float *inv_freq, *q_norm, *k_norm;
  std::byte* state;  // units of `unit` bytes; without a block table, f32 keys and values of this step's tokens
  size_t unit;
  const int32_t *positions, *token_sequence, *sequence_start, *block_table;  // block_table nullptr: not paged
  uint32_t tokens, sequences, blocks_per_sequence;
  uint32_t heads, kv_heads, group, head_dim, dim;  // dim is head_dim, padded to 16
  uint32_t causal, window, pairs;
  RopeStyle style;
  float scale, softcap, factor, eps, offset;

  // Where a token stands in its sequence, as its keys count: by position in a state, else by order in this step.
  __device__ uint32_t position(uint32_t sequence, uint32_t token) const {
    return uint32_t(block_table ? positions[token] : int32_t(token) - sequence_start[sequence]);
  }
  // The first position that a token at `at` sees.
  __device__ uint32_t sees_from(uint32_t at) const { return causal && window && at >= window ? at - window + 1 : 0; }
  __device__ const std::byte* page(uint32_t sequence, uint32_t p) const {
    return state + size_t(block_table[size_t(sequence) * blocks_per_sequence + p / kPage]) * unit;
  }
  // Scales of a page's keys in an int8 state, (kv_heads, 32); those of its values follow.
  __device__ float* scales(const std::byte* page) const {
    return reinterpret_cast<float*>(const_cast<std::byte*>(page) + size_t(2) * kv_heads * kPage * dim);
  }
};

// Rows of a sequence, in order of token, then head of the group: a tile of them.
struct Rows {
  uint32_t sequence, first, count;
};

// Tile `index` of all, in tiles of `most` rows, the last of a sequence first: late tokens see most. Each warp finds it.
__device__ inline bool find_rows(const Attention& a, uint32_t index, uint32_t most, Rows& found) {
  const uint32_t lane = threadIdx.x % 32;
  uint32_t before = 0;
  for (uint32_t base = 0; base < a.sequences; base += 32) {
    const uint32_t s = base + lane;
    const uint32_t rows = s < a.sequences ? uint32_t(a.sequence_start[s + 1] - a.sequence_start[s]) * a.group : 0;
    const uint32_t tiles = (rows + most - 1) / most;
    uint32_t upto = tiles;
    for (uint32_t d = 1; d < 32; d *= 2) {
      const uint32_t lower = __shfl_up_sync(kAll, upto, d);
      if (lane >= d) upto += lower;
    }
    const uint32_t past = __ballot_sync(kAll, index < before + upto);
    if (past) {
      const int owner = __ffs(int(past)) - 1;
      const uint32_t tile = __shfl_sync(kAll, before + upto - 1 - index, owner);
      const uint32_t all = __shfl_sync(kAll, rows, owner);
      found = {base + uint32_t(owner), tile * most, min(most, all - tile * most)};
      return true;
    }
    before += __shfl_sync(kAll, upto, 31);
  }
  return false;
}

__device__ inline float warp_sum(float x) {
  for (int d = 16; d; d /= 2) x += __shfl_xor_sync(kAll, x, d);
  return x;
}
__device__ inline float warp_max(float x) {
  for (int d = 16; d; d /= 2) x = fmaxf(x, __shfl_xor_sync(kAll, x, d));
  return x;
}

// Norm and rope of one head by a warp: `head` holds head_dim floats, which it changes; ends with the warp in step.
__device__ inline void turn(const Attention& a, float* head, const float* weight, int32_t position) {
  const uint32_t lane = threadIdx.x % 32;
  if (weight) {
    float squares = 0;
    for (uint32_t i = lane; i < a.head_dim; i += 32) squares = fmaf(head[i], head[i], squares);
    const float r = 1 / sqrtf(warp_sum(squares) / float(a.head_dim) + a.eps);
    for (uint32_t i = lane; i < a.head_dim; i += 32) head[i] = head[i] * r * (a.offset + weight[i]);
    __syncwarp();
  }
  if (a.inv_freq) {
    const bool half = a.style == RopeStyle::half;
    for (uint32_t i = lane; i < a.pairs; i += 32) {
      float sine, cosine;
      sincosf(float(position) * a.inv_freq[i], &sine, &cosine);
      sine *= a.factor;
      cosine *= a.factor;
      float &first = head[half ? i : 2 * i], &second = head[half ? i + a.pairs : 2 * i + 1];
      const float x = first, y = second;
      first = x * cosine - y * sine;
      second = y * cosine + x * sine;
    }
    __syncwarp();
  }
}

// Reads a head into `head`, zeros up to `dim`, and turns it.
__device__ inline void take_head(const Attention& a, const float* from, const float* weight, int32_t position,
                                 bool turns, float* head) {
  const uint32_t lane = threadIdx.x % 32;
  __syncwarp();
  for (uint32_t i = lane; i < a.dim; i += 32) head[i] = i < a.head_dim ? from[i] : 0;
  __syncwarp();
  if (turns) turn(a, head, weight, position);
}

template <class T> __device__ T element(float x);
template <> __device__ inline float element<float>(float x) { return x; }
template <> __device__ inline __half element<__half>(float x) { return __float2half_rn(x); }
template <> __device__ inline __nv_bfloat16 element<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

// What an int8 state keeps of a head: integers to 127, and what takes them back.
__device__ inline float head_scale(const Attention& a, const float* head) {
  float most = 0;
  for (uint32_t i = threadIdx.x % 32; i < a.dim; i += 32) most = fmaxf(most, fabsf(head[i]));
  return warp_max(most);
}
__device__ inline int8_t quantized(float x, float most) {
  return int8_t(max(-127, min(127, __float2int_rn(most == 0 ? 0.0f : x * (127.0f / most)))));
}

// Stores one head of plane 0 (keys) or 1 (values) at position p of a sequence, by a warp.
__device__ inline void store_head(const Attention& a, uint32_t sequence, uint32_t p, uint32_t plane, uint32_t h,
                                  const float* head) {
  const uint32_t lane = threadIdx.x % 32, side = plane * a.kv_heads + h;
  if (!a.block_table) {
    const size_t token = size_t(a.sequence_start[sequence]) + p;
    float* to = reinterpret_cast<float*>(a.state) + (token * 2 * a.kv_heads + side) * a.dim;
    for (uint32_t i = lane; i < a.dim; i += 32) to[i] = head[i];
    return;
  }
  std::byte* page = const_cast<std::byte*>(a.page(sequence, p));
  const size_t at = (size_t(side) * kPage + p % kPage) * a.dim;
  if (a.dtype == DType::i8) {
    const float most = head_scale(a, head);
    for (uint32_t i = lane; i < a.dim; i += 32) reinterpret_cast<int8_t*>(page)[at + i] = quantized(head[i], most);
    if (lane == 0) a.scales(page)[side * kPage + p % kPage] = most / 127.0f;
    return;
  }
  for (uint32_t i = lane; i < a.dim; i += 32) {
    if (a.dtype == DType::f32) reinterpret_cast<float*>(page)[at + i] = head[i];
    else if (a.dtype == DType::f16) reinterpret_cast<__half*>(page)[at + i] = element<__half>(head[i]);
    else reinterpret_cast<__nv_bfloat16*>(page)[at + i] = element<__nv_bfloat16>(head[i]);
  }
}

__device__ inline void put_out(const Attention& a, uint32_t token, uint32_t column, float x) {
  std::byte* row = a.out + token * a.out_stride;
  if (a.out_dtype == DType::f32) reinterpret_cast<float*>(row)[column] = x;
  else if (a.out_dtype == DType::f16) reinterpret_cast<__half*>(row)[column] = element<__half>(x);
  else reinterpret_cast<__nv_bfloat16*>(row)[column] = element<__nv_bfloat16>(x);
}

// 2^x; 0 for -infinity.
__device__ inline float power(float x) { return exp2f(x); }

// A raw score in powers of two.
__device__ inline float score(const Attention& a, float dot) {
  constexpr float log2e = 1.44269504f;
  return a.softcap > 0 ? a.softcap * tanhf(dot * a.scale / a.softcap) * log2e : dot * (a.scale * log2e);
}

// A running soft-max: weights are 2^(score - most). What sees nothing yet has most -infinity.
__device__ inline float finite(float most) { return most == -INFINITY ? 0.0f : most; }

}  // namespace ingot::cuda::paged

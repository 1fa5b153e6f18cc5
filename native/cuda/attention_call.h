// What attention's kernels share: the call, where rows and pages lie, and how a head is normed and turned.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "activation.h"
#include "launch.h"
#include "tensor_core.h"

namespace ingot::cuda::paged {

constexpr uint32_t kPage = kBlockTokens, kTile = 64, kSplit = 128;  // positions
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

// Cosines and sines of the pairs of a head at a position, by the threads first, first + step ...
__device__ inline void find_angles(const Attention& a, int32_t position, float2* angles, uint32_t first, uint32_t step) {
  for (uint32_t i = a.inv_freq ? first : a.pairs; i < a.pairs; i += step) {
    float sine, cosine;
    sincosf(float(position) * a.inv_freq[i], &sine, &cosine);
    angles[i] = {cosine * a.factor, sine * a.factor};
  }
}

// Norm and rope of one head by a warp, in shared memory: `head` holds `dim` floats. The warp starts and ends in step.
__device__ inline void turn(const Attention& a, float* head, const float* weight, const float2* angles) {
  const uint32_t lane = threadIdx.x % 32;
  __syncwarp();
  if (weight) {
    float squares = 0;
    for (uint32_t i = lane; i < a.head_dim; i += 32) squares = fmaf(head[i], head[i], squares);
    const float r = 1 / sqrtf(warp_sum(squares) / float(a.head_dim) + a.eps);
    for (uint32_t i = lane; i < a.head_dim; i += 32) head[i] = head[i] * r * (a.offset + weight[i]);
    __syncwarp();
  }
  if (!a.inv_freq) return;
  const bool half = a.style == RopeStyle::half;
  for (uint32_t i = lane; i < a.pairs; i += 32) {
    const auto [cosine, sine] = angles[i];
    float &first = head[half ? i : 2 * i], &second = head[half ? i + a.pairs : 2 * i + 1];
    const float x = first, y = second;
    first = fmaf(x, cosine, -(y * sine));
    second = fmaf(y, cosine, x * sine);
  }
  __syncwarp();
}

// A head's elements on the lanes of a warp, element i on lane i % 32, zeros past head_dim.
template <int N>
struct Lanes {
  float x[N];

  __device__ void read(const Attention& a, const float* from) {
#pragma unroll
    for (int e = 0; e < N; ++e) {
      const uint32_t i = threadIdx.x % 32 + e * 32;
      x[e] = i < a.head_dim ? from[i] : 0;
    }
  }
  __device__ void write(const Attention& a, float* to) const {
#pragma unroll
    for (int e = 0; e < N; ++e) {
      const uint32_t i = threadIdx.x % 32 + e * 32;
      if (i < a.dim) to[i] = x[e];
    }
  }
};

template <class T> __device__ T element(float x);
template <> __device__ inline float element<float>(float x) { return x; }
template <> __device__ inline __half element<__half>(float x) { return __float2half_rn(x); }
template <> __device__ inline __nv_bfloat16 element<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

__device__ inline float larger_or_nan(float x, float y) {
  float z;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
  return z;
}

// What an int8 state keeps of a head: integers to 127, and what takes them back, which is NaN where an element is.
__device__ inline float head_scale(const Attention& a, const float* head) {
  float most = 0;
  for (uint32_t i = threadIdx.x % 32; i < a.dim; i += 32) most = larger_or_nan(most, fabsf(head[i]));
  for (int d = 16; d; d /= 2) most = larger_or_nan(most, __shfl_xor_sync(kAll, most, d));
  return most;
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

// Starts copying a tile of two pages, all of which is present: 16-bit elements, Dim a head, to rows of Dim + 8.
template <int Dim, int Threads>
__device__ inline void copy_tile(uint32_t to, const std::byte* const (&pages)[2], size_t offset) {
  constexpr uint32_t chunks = Dim / 8, rows = Threads / chunks;  // rows that the threads copy at once
  static_assert(kPage % rows == 0);
  const uint32_t r = threadIdx.x / chunks, column = threadIdx.x % chunks;
  to += (r * (Dim + 8) + column * 8) * 2;
  offset += (r * chunks + column) * 16;
#pragma unroll
  for (uint32_t i = 0; i < kTile; i += rows)
    copy_async(to + i * (Dim + 8) * 2, pages[i / kPage] + offset + i % kPage * chunks * 16, true);
}

// Two neighbours, the first in an even column.
__device__ inline void put_pair(const Attention& a, uint32_t token, uint32_t column, float x, float y) {
  std::byte* row = a.out + token * a.out_stride;
  if (a.out_dtype == DType::f32) {
    reinterpret_cast<float*>(row)[column] = x;
    reinterpret_cast<float*>(row)[column + 1] = y;
  } else if (a.out_dtype == DType::f16) {
    reinterpret_cast<__half2*>(row)[column / 2] = __floats2half2_rn(x, y);
  } else {
    reinterpret_cast<__nv_bfloat162*>(row)[column / 2] = __floats2bfloat162_rn(x, y);
  }
}

// 2^x within 2^-22; 0 for -infinity.
__device__ inline float power(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Scores stay as the products gave them where they can: a weight is 2^(unit * score - unit * most).
struct Scores {
  bool plain;
  float unit, scale, softcap;

  __device__ explicit Scores(const Attention& a)
      : plain(a.softcap <= 0 && a.scale > 0), unit(1.44269504f * (plain ? a.scale : 1)), scale(a.scale),
        softcap(a.softcap) {}
  __device__ float operator()(float dot) const {
    if (plain) return dot;
    return softcap > 0 ? softcap * tanhf(dot * scale / softcap) : dot * scale;
  }
  // `most` scaled, 0 for -infinity: what sees nothing gets weights of 0, not NaN.
  __device__ float peak(float most) const { return most == -INFINITY ? 0.0f : __fmul_rn(most, unit); }
  __device__ float weight(float score, float peak) const { return power(fmaf(score, unit, -peak)); }
  // What sums up to `most` are multiplied by when a larger one comes: exactly 1 where it is the same.
  __device__ float rescale(float most, float peak) const {
    return most == -INFINITY ? 0.0f : power(__fmul_rn(most, unit) - peak);
  }
};

}  // namespace ingot::cuda::paged

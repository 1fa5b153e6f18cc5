// What kernels of products read: weights into registers, rows of x as 16-bit operands into shared memory.
#pragma once
#include "mma.h"
#include "product_kernels.h"

namespace ingot::cuda {

// Elements from one token's x to the next one's in shared memory; 64 bytes past a multiple of 128, so that tokens
// alternate between halves of the banks.
__host__ __device__ constexpr uint32_t staged_stride(uint32_t k) { return round_up(k, kQuantBlock) + 32; }

// Where a lane is in its warp's stream of weights: block `block` of tile `tile`.
struct Cursor {
  uint32_t tile, block;
  __device__ void advance(uint32_t first, uint32_t last, uint32_t branches) {
    if (++block < last) return;
    block = first;
    tile = (tile + 1) % branches ? tile + 1 : tile + 1 + (gridDim.x - 1) * branches;
  }
};

// The weights of one block of 16 rows, spread over a warp: rows g and g + 8 of each slot.
template <class W>
struct Held {
  static constexpr uint32_t kSlots = kQuantBlock / (4 * W::kElements);
  uint4 low[kSlots], high[kSlots];
  int8_t sub_low[kSlots], sub_high[kSlots];
  __half scale_low, scale_high;

  __device__ void load(const Product& p, const Cursor& at, uint32_t slot) {
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const uint32_t k = at.block * kQuantBlock + (slot * 4 + t) * W::kElements;
    const size_t row = size_t{at.tile} * kTile + g, stride = row_bytes(p);
    const bool valid = at.tile < p.tiles() && k < round_up(p.k, kPadK);
    const std::byte* from = p.weight + row * stride + k / W::kElements * 16;
    low[slot] = load_weights(from, valid);
    high[slot] = load_weights(from + 8 * stride, valid);
    if constexpr (W::kInterleaved) {
      const uint32_t groups = ceil_div(p.k, kQuantGroup);
      const int8_t* sub = p.sub_scales + row * groups + k / kQuantGroup;
      sub_low[slot] = valid ? __ldg(sub) : 0;
      sub_high[slot] = valid ? __ldg(sub + 8 * groups) : 0;
    }
  }
  __device__ void load_scales(const Product& p, const Cursor& at) {
    if constexpr (W::kQuantised) {
      const size_t row = size_t{at.tile} * kTile + threadIdx.x % 32 / 4;
      if (at.tile >= p.tiles()) return;
      scale_low = __ldg(p.scales + row * p.blocks() + at.block);
      scale_high = __ldg(p.scales + (row + 8) * p.blocks() + at.block);
    }
  }
  __host__ __device__ static size_t row_bytes(const Product& p) { return size_t{round_up(p.k, kPadK)} / W::kElements * 16; }
};

// Four elements of a staged row as 16-bit operands at column c.
template <class W>
__device__ void store_four(uint16_t* row, uint32_t c, const float (&v)[4]) {
  const uint2 four{pack<W::kHalf>(v[0], v[1]), pack<W::kHalf>(v[2], v[3])};
  if constexpr (W::kInterleaved) {  // 0 4 1 5 2 6 3 7: these are the first or the second four
    uint16_t* eight = row + c / 8 * 8 + c % 8 / 4;
    eight[0] = uint16_t(four.x), eight[2] = uint16_t(four.x >> 16);
    eight[4] = uint16_t(four.y), eight[6] = uint16_t(four.y >> 16);
  } else {
    *reinterpret_cast<uint2*>(row + c) = four;
  }
}

// One pass over rows first .. first + tokens of x, kTokens x kGroups fours of a thread in flight at once: the sums of
// squares of each of the kThreads' warps, the rows times their norm's weight given to store(row, c, v) in fours, or
// both. Calls wait_for_inputs.
template <uint32_t kTokens, uint32_t kGroups, uint32_t kThreads, bool kSquares, bool kOperands, class Store>
__device__ void pass(const Product& p, uint32_t first, uint32_t tokens, float* squares, const Store& store) {
  constexpr uint32_t kWarps = kThreads / 32, kSpan = kThreads * 4 * kGroups;
  const uint32_t end = round_up(p.k, kQuantBlock);
  const bool wide = p.k % 4 == 0 && p.x.stride % 16 == 0 && reinterpret_cast<size_t>(p.x.data) % 16 == 0;
  for (uint32_t token = 0; token < tokens; token += kTokens) {
    float sum[kTokens] = {}, factor[kTokens];
#pragma unroll
    for (uint32_t j = 0; j < kTokens; ++j)
      factor[j] = kSquares || token + j >= tokens ? 1 : inverse_rms(p, squares + (token + j) * kWarps, kWarps);
    for (uint32_t base = 0; base < end; base += kSpan) {
      float weight[kGroups][4], v[kTokens][kGroups][4];
#pragma unroll
      for (uint32_t i = 0; i < kGroups; ++i) load_norm(p, base + (i * kThreads + threadIdx.x) * 4, weight[i]);
      if (token == 0 && base == 0) wait_for_inputs();
#pragma unroll
      for (uint32_t j = 0; j < kTokens; ++j)
#pragma unroll
        for (uint32_t i = 0; i < kGroups; ++i)
          load_four(p.x, first + token + j, base + (i * kThreads + threadIdx.x) * 4, token + j < tokens ? p.k : 0, wide,
                    v[j][i]);
#pragma unroll
      for (uint32_t j = 0; j < kTokens; ++j)
#pragma unroll
        for (uint32_t i = 0; i < kGroups; ++i) {
#pragma unroll
          for (uint32_t e = 0; e < 4; ++e) {
            sum[j] = fmaf(v[j][i][e], v[j][i][e], sum[j]);
            v[j][i][e] *= kSquares ? weight[i][e] : factor[j] * weight[i][e];
          }
          const uint32_t c = base + (i * kThreads + threadIdx.x) * 4;
          if (kOperands && c < end && token + j < tokens) store(token + j, c, v[j][i]);
        }
    }
    if (kSquares && p.norm)
#pragma unroll
      for (uint32_t j = 0; j < kTokens; ++j) {
        const float all = warp_sum(sum[j]);
        if (threadIdx.x % 32 == 0 && token + j < tokens) squares[(token + j) * kWarps + threadIdx.x / 32] = all;
      }
  }
}

// Rows of x for their operands. Those of f16 are divided by their root mean square first, lest they overflow; finished
// sums of others are, by sum_factor. `meet` is a barrier of the threads.
template <class W, uint32_t kTokens, uint32_t kGroups, uint32_t kThreads, class Store, class Meet>
__device__ void read_rows(const Product& p, uint32_t first, uint32_t tokens, float* squares, const Store& store,
                          const Meet& meet) {
  if (W::kHalf && p.norm) {
    pass<kTokens, kGroups, kThreads, true, false>(p, first, tokens, squares, store);
    meet();
    pass<kTokens, kGroups, kThreads, false, true>(p, first, tokens, squares, store);
  } else {
    pass<kTokens, kGroups, kThreads, true, true>(p, first, tokens, squares, store);
  }
}

// Rows of x as operands in shared memory.
template <class W, uint32_t kTokens, uint32_t kWarps>
__device__ void stage(const Product& p, uint32_t first, uint32_t tokens, uint16_t* staged, float* squares) {
  const uint32_t stride = staged_stride(p.k);
  read_rows<W, kTokens, kTokens == 1 ? 4 : 1, kWarps * 32>(
      p, first, tokens, squares,
      [&](uint32_t row, uint32_t c, const float (&v)[4]) { store_four<W>(staged + size_t{row} * stride, c, v); },
      [] { __syncthreads(); });
}

template <class W>
__device__ float sum_factor(const Product& p, const float* squares, uint32_t warps) {
  return W::kHalf ? 1 : inverse_rms(p, squares, warps);
}

// Whether rows of x are operands as they lie, but for the order of eights.
template <class W>
__device__ bool copies(const Product& p) {
  return !p.norm && p.x.dtype == (W::kHalf ? DType::f16 : DType::bf16) && p.k % kQuantBlock == 0 &&
         p.x.stride % 16 == 0 && reinterpret_cast<size_t>(p.x.data) % 16 == 0;
}

// Eight elements in the order of kInterleaved: 0 4 1 5 2 6 3 7.
__device__ inline uint4 interleaved(const uint4& v) {
  return {__byte_perm(v.x, v.z, 0x5410), __byte_perm(v.x, v.z, 0x7632), __byte_perm(v.y, v.w, 0x5410),
          __byte_perm(v.y, v.w, 0x7632)};
}

// Rows that are operands already, all in flight at once where their order stays, else kAtOnce loads of each thread.
template <class W>
__device__ void copy_rows(const Product& p, uint32_t first, uint32_t tokens, uint16_t* staged, uint32_t threads) {
  constexpr uint32_t kAtOnce = 8;
  wait_for_inputs();
  for (uint32_t token = 0; token < tokens; ++token) {
    const uint16_t* from = row_of<const uint16_t>(p.x, first + token);
    uint16_t* to = staged + size_t{token} * staged_stride(p.k);
    if constexpr (W::kInterleaved) {
      for (uint32_t base = threadIdx.x * 8; base < p.k; base += kAtOnce * threads * 8) {
        uint4 v[kAtOnce];
#pragma unroll
        for (uint32_t i = 0; i < kAtOnce; ++i)
          if (base + i * threads * 8 < p.k) v[i] = *reinterpret_cast<const uint4*>(from + base + i * threads * 8);
#pragma unroll
        for (uint32_t i = 0; i < kAtOnce; ++i)
          if (base + i * threads * 8 < p.k) *reinterpret_cast<uint4*>(to + base + i * threads * 8) = interleaved(v[i]);
      }
    } else {
      for (uint32_t c = threadIdx.x * 8; c < p.k; c += threads * 8)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(uint32_t(__cvta_generic_to_shared(to + c))),
                     "l"(from + c)
                     : "memory");
    }
  }
  if constexpr (!W::kInterleaved) asm volatile("cp.async.commit_group;\n\tcp.async.wait_group 0;" ::: "memory");
}

}  // namespace ingot::cuda

// What the tile kernel does otherwise where both operands are int8, in the default mode: a block of 256 of a row of x is
// rounded with its own largest magnitude at 127, matrix instructions take weights from shared memory as they lie, and
// the sum of a block, which is exact, is taken times both scales.
#pragma once
#include "product_tile.h"

namespace ingot::cuda {

#ifdef INGOT_HOPPER
// 16 bytes of which `bytes` exist, two at a time; the rest zeros.
__device__ __noinline__ inline uint4 load_apart(const std::byte* from, uint32_t bytes) {
  uint32_t words[4] = {};
  for (uint32_t i = 0; i < 8; ++i)
    if (i * 2 < bytes) words[i / 2] |= uint32_t(reinterpret_cast<const uint16_t*>(from)[i]) << i % 2 * 16;
  return {words[0], words[1], words[2], words[3]};
}

// Eight elements of a row from c on, zeros past its end, as they lie: of f32 or two bytes each.
struct RawEight {
  uint4 raw[2];

  __device__ void load(const Matrix& m, uint32_t row, uint32_t c, uint32_t k) {
    raw[0] = raw[1] = {};
    if (c >= k) return;
    const uint32_t size = m.dtype == DType::f32 ? 4 : 2, bytes = (k - c) * size;
    const std::byte* from = row_of<std::byte>(m, row) + c * size;
    const bool whole = bytes >= 8 * size && m.stride % 16 == 0 && reinterpret_cast<size_t>(m.data) % 16 == 0;
    const auto* units = reinterpret_cast<const uint4*>(from);
    raw[0] = whole ? units[0] : load_apart(from, bytes);
    if (size == 4) raw[1] = whole ? units[1] : load_apart(from + 16, bytes > 16 ? bytes - 16 : 0);
  }
  __device__ void get(DType dtype, float (&v)[8]) const {
    const uint32_t words[8] = {raw[0].x, raw[0].y, raw[0].z, raw[0].w, raw[1].x, raw[1].y, raw[1].z, raw[1].w};
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i)
      v[i] = dtype == DType::f32    ? __uint_as_float(words[i])
             : dtype == DType::bf16 ? __uint_as_float(i % 2 ? words[i / 2] & 0xffff0000 : words[i / 2] << 16)
                                    : __half2float(__ushort_as_half(uint16_t(words[i / 2] >> i % 2 * 16)));
  }
};

// Four int8 from floats of at most 127.
__device__ inline uint32_t pack_i8(float a, float b, float c, float d) {
  uint32_t high, all;
  asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, 0;" : "=r"(high) : "r"(__float2int_rn(d)), "r"(__float2int_rn(c)));
  asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, %3;" : "=r"(all) : "r"(__float2int_rn(b)), "r"(__float2int_rn(a)), "r"(high));
  return all;
}

// What the norm multiplies elements c .. c + 7 by, less its offset; zeros where there is none.
__device__ inline void load_eight_norm(const Product& p, uint32_t c, float (&v)[8]) {
  float4 low = {}, high = {};
  const bool whole = p.norm && c + 8 <= p.k;
  if (whole) low = __ldg(reinterpret_cast<const float4*>(p.norm + c));
  if (whole) high = __ldg(reinterpret_cast<const float4*>(p.norm + c + 4));
  v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w, v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
  if (p.norm && !whole)
    for (uint32_t j = 0; j < 8; ++j)
      if (c + j < p.k) v[j] = __ldg(p.norm + c + j);
}

// Rows first .. last of x as operands, a block of 256 by a warp: their scales, and the sums of squares of each warp.
template <class L>
__device__ void make_rows_i8(const Product& p, const Work& work, uint32_t first, uint32_t last) {
  constexpr uint32_t kAtOnce = 4, kWarps = L::kConsumers / 32;
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, stride = work.scale_stride;
  const float offset = p.norm ? p.norm_offset : 1;
#pragma unroll 1
  for (uint32_t token = first; token < last; ++token) {
    std::byte* row = reinterpret_cast<std::byte*>(work.operands) + size_t{token} * round_up(p.k, kQuantBlock);
    float squares = 0;
#pragma unroll 1
    for (uint32_t base = warp; base < p.blocks(); base += kAtOnce * kWarps) {
      RawEight eights[kAtOnce];
      float weights[kAtOnce][8];  // they come at the same time as what they are for
#pragma unroll
      for (uint32_t i = 0; i < kAtOnce; ++i) {
        const uint32_t c = (base + i * kWarps) * kQuantBlock + lane * 8;
        eights[i].load(p.x, token, c, p.k);
        load_eight_norm(p, c, weights[i]);
      }
#pragma unroll 1
      for (uint32_t i = 0; i < kAtOnce; ++i) {
        const uint32_t block = base + i * kWarps, c = block * kQuantBlock + lane * 8;
        if (block >= p.blocks()) break;
        float v[8];
        eights[0].get(p.x.dtype, v);
        uint32_t most = 0;
#pragma unroll
        for (uint32_t j = 0; j < 8; ++j) {
          squares = fmaf(v[j], v[j], squares);
          v[j] *= offset + weights[0][j];
          most = max(most, __float_as_uint(fabsf(v[j])));  // of NaN, more than of any number
        }
#pragma unroll
        for (uint32_t j = 1; j < kAtOnce; ++j) {
          eights[j - 1] = eights[j];
#pragma unroll
          for (uint32_t e = 0; e < 8; ++e) weights[j - 1][e] = weights[j][e];
        }
        most = max(__reduce_max_sync(~0u, most), __float_as_uint(0x1p-100f));  // blocks of zeros stay zeros
        const float largest = __uint_as_float(most), inverse = 127 / largest;
        if (lane == 0) work.scales[block * stride + token] = largest / 127;
        for (uint32_t j = 0; j < 8; ++j) v[j] *= inverse;
        *reinterpret_cast<uint2*>(row + c) = {pack_i8(v[0], v[1], v[2], v[3]), pack_i8(v[4], v[5], v[6], v[7])};
      }
    }
    squares = warp_sum(squares);
    if (lane == 0) work.squares[token * kRuns + warp] = squares;
  }
}

// Sums blocks first .. last of 64 rows in `kept`, by a warpgroup; `row`: the first of this warp's 16.
template <class L, uint32_t kCount>
__device__ void sum_i8(const Product& p, uint32_t row, uint32_t first, uint32_t last, const L& layout,
                       float (&kept)[kCount]) {
  static_assert(L::kWeightK == kBoxBytes && L::kOperandK == kBoxBytes && kQuantBlock == 2 * kBoxBytes);
  typename L::Rest& rest = layout.rest();
  Turn<L::kWeightStages> weights, freed_weights;
  Turn<L::kOperandStages> operands, freed_operands;
  const uint32_t lane = threadIdx.x % 32, own = __shfl_sync(~0u, threadIdx.x / 128, 0) * 64;
  const auto free = [&] {
    if (lane == 0)
      arrive(rest.weights_empty[freed_weights.stage]), arrive(rest.operands_empty[freed_operands.stage]);
    freed_weights.advance(), freed_operands.advance();
  };
  const __half* scales = p.scales + size_t{row + lane / 4} * p.blocks();
  const bool exists = row < p.tiles() * kTile;
  const auto scale = [&](uint32_t high, uint32_t block) {
    return exists && block < last ? __ldg(scales + high * 8 * p.blocks() + block) : __ushort_as_half(0);
  };
  int32_t sums[kCount];
  __half low = scale(0, first), high = scale(1, first);
  for (uint32_t block = first; block < last; ++block) {
    const __half next_low = scale(0, block + 1), next_high = scale(1, block + 1);
    const float* x_scales;
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
      wait(rest.weights_full[weights.stage], weights.parity);
      wait(rest.operands_full[operands.stage], operands.parity);
      const uint32_t a = shared_address(layout.weights(weights.stage)) + own * kBoxBytes;
      const uint32_t b = shared_address(layout.operands(operands.stage));
      x_scales = rest.x_scales[operands.stage];
      weights.advance(), operands.advance();
      wgmma_begin();
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) wgmma_i8(sums, operand(a + i * 32), operand(b + i * 32), half > 0 || i > 0);
      wgmma_commit();
    }
    const float by[2] = {__half2float(low), __half2float(high)};
    float2 x[kCount / 4];
#pragma unroll
    for (uint32_t i = 0; i < kCount / 4; ++i) x[i] = *reinterpret_cast<const float2*>(x_scales + i * 8 + lane % 4 * 2);
    wgmma_wait<1>();
    free();
    wgmma_wait<0>();
    settle(sums);
    free();
#pragma unroll
    for (uint32_t i = 0; i < kCount; ++i)
      kept[i] = fmaf(float(sums[i]), (i % 2 ? x[i / 4].y : x[i / 4].x) * by[i % 4 / 2], kept[i]);
    low = next_low, high = next_high;
  }
}
#endif

}  // namespace ingot::cuda

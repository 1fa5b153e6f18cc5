// What the tile kernel does otherwise where both operands are e4m3, in the default mode: a row of x is rounded with its own
// largest magnitude at 448, and matrix instructions take weights from shared memory as they lie.
#pragma once
#include <cuda_fp8.h>

#include "product_tile.h"
#include "repack.h"

namespace ingot::cuda {

#ifdef INGOT_HOPPER
// Four elements of a row of x, zeros past its end, times the norm's weight; 16 bytes of f32 or, not kWide, of anything.
template <bool kWide>
struct Four {
  static constexpr uint32_t kElements = 4, kAtOnce = kWide ? 16 : 1;
  float v[4], weight[4];

  // The weights come at the same time as what they are for, not one after the other.
  __device__ void load(const Product& p, uint32_t token, uint32_t c) {
    if constexpr (!kWide) return load_norm(p, c, weight), load_four(p.x, token, c, p.k, false, v);
    float4 f = {}, by = {};
    if (c < p.k) f = *reinterpret_cast<const float4*>(row_of<const float>(p.x, token) + c);
    if (c < p.k && p.norm) by = __ldg(reinterpret_cast<const float4*>(p.norm + c));
    v[0] = f.x, v[1] = f.y, v[2] = f.z, v[3] = f.w;
    weight[0] = by.x, weight[1] = by.y, weight[2] = by.z, weight[3] = by.w;
  }
  __device__ void weigh(const Product& p, float& squares) {
    const float offset = !kWide ? 0 : p.norm ? p.norm_offset : 1;
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) squares = fmaf(v[j], v[j], squares), v[j] *= offset + weight[j];
  }
  __device__ void get(uint32_t, float (&to)[4]) const {
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) to[j] = v[j];
  }
};

// Eight of bf16 without a norm, 16 bytes.
struct Eight {
  static constexpr uint32_t kElements = 8, kAtOnce = 16;
  uint4 raw;

  __device__ void load(const Product& p, uint32_t token, uint32_t c) {
    raw = {};
    if (c < p.k) raw = *reinterpret_cast<const uint4*>(row_of<const uint16_t>(p.x, token) + c);
  }
  __device__ void weigh(const Product&, float&) {}
  __device__ void get(uint32_t four, float (&to)[4]) const {
    const uint32_t low = four ? raw.z : raw.x, high = four ? raw.w : raw.y;
    to[0] = __uint_as_float(low << 16), to[1] = __uint_as_float(low & 0xffff0000);
    to[2] = __uint_as_float(high << 16), to[3] = __uint_as_float(high & 0xffff0000);
  }
};

// Four e4m3 in the order of weights.
__device__ inline uint32_t pack_e4m3(const float (&v)[4]) {
  static_assert(e4m3_place(2) == 0 && e4m3_place(0) == 1 && e4m3_place(3) == 2 && e4m3_place(1) == 3);
  const auto pair = [](float low, float high) {
    return uint32_t(__nv_cvt_float2_to_fp8x2({low, high}, __NV_SATFINITE, __NV_E4M3));
  };
  return pair(v[2], v[0]) | pair(v[3], v[1]) << 16;
}

__device__ inline void meet_warpgroup() {
  asm volatile("bar.sync %0, 128;" ::"r"(2 + threadIdx.x / 128) : "memory");
}

// By a warpgroup: row `token` of x as operands, as round_rows_e4m3 of product_blas.cu makes them, and their factor. A row
// of 8,192 f32 or 16,384 bf16 is read once.
template <class Unit, class L>
__device__ void round_row(const Product& p, uint32_t token, uint32_t* to, float& scale, const L& layout) {
  constexpr uint32_t kAtOnce = Unit::kAtOnce, kFours = Unit::kElements / 4, kSpan = 128 * kAtOnce * Unit::kElements;
  typename L::Rest& rest = layout.rest();
  const uint32_t end = round_up(p.k, kQuantBlock), warp = threadIdx.x / 32, first_warp = warp / 4 * 4;
  const auto column = [&](uint32_t base, uint32_t i) { return base + (i * 128 + threadIdx.x % 128) * Unit::kElements; };
  const auto past = [&](uint32_t base, uint32_t i) { return base + i * 128 * Unit::kElements >= end; };  // for all threads
  Unit units[kAtOnce];
  float squares = 0, most = 0, v[4];
  const auto load = [&](uint32_t base) {
#pragma unroll
    for (uint32_t i = 0; i < kAtOnce; ++i) {
      if (past(base, i)) break;
      units[i].load(p, token, column(base, i));
    }
#pragma unroll
    for (uint32_t i = 0; i < kAtOnce; ++i) {
      if (past(base, i)) break;
      units[i].weigh(p, squares);
    }
  };
#pragma unroll 1
  for (uint32_t base = 0; base < end; base += kSpan) {
    load(base);
#pragma unroll
    for (uint32_t i = 0; i < kAtOnce * kFours; ++i) {
      if (past(base, i / kFours)) break;
      units[i / kFours].get(i % kFours, v);
      for (uint32_t j = 0; j < 4; ++j) most = fmaxf(most, fabsf(v[j]));
    }
  }
  squares = warp_sum(squares), most = warp_max(most);
  meet_warpgroup();  // the row before is done with
  if (threadIdx.x % 32 == 0) rest.squares[warp] = squares, rest.largest[warp] = most;
  meet_warpgroup();
  const float factor = inverse_rms(p, rest.squares + first_warp, 4);
  for (uint32_t i = 0; i < 4; ++i) most = fmaxf(most, rest.largest[first_warp + i]);
  most = fmaxf(most * factor, 0x1p-100f);  // rows of zeros stay zeros
  if (threadIdx.x % 128 == 0) scale = most / kMostE4m3;
  const float inverse = kMostE4m3 / most;
#pragma unroll 1
  for (uint32_t base = 0; base < end; base += kSpan) {
    if (end > kSpan) load(base);
#pragma unroll
    for (uint32_t i = 0; i < kAtOnce; ++i) {
      if (past(base, i)) break;
      const uint32_t c = column(base, i);
      uint32_t words[kFours];
#pragma unroll
      for (uint32_t four = 0; four < kFours; ++four) {
        units[i].get(four, v);
        for (uint32_t j = 0; j < 4; ++j) v[j] = v[j] * factor * inverse;
        words[four] = pack_e4m3(v);
      }
      if (c >= end) continue;
      if constexpr (kFours == 2) *reinterpret_cast<uint2*>(to + c / 4) = {words[0], words[1]};
      else to[c / 4] = words[0];
    }
  }
}

// Rows first .. last of x, one by each warpgroup at a time.
template <class L>
__device__ void make_rows_e4m3(const Product& p, const Work& work, uint32_t first, uint32_t last, const L& layout) {
  const bool lines = p.x.stride % 16 == 0 && reinterpret_cast<size_t>(p.x.data) % 16 == 0;
  const bool floats = lines && p.x.dtype == DType::f32 && p.k % 4 == 0;
  const bool halves = lines && p.x.dtype == DType::bf16 && p.k % 8 == 0 && !p.norm;
  for (uint32_t token = first + threadIdx.x / 128; token < last; token += L::kConsumers / 128) {
    uint32_t* to = reinterpret_cast<uint32_t*>(work.operands) + size_t{token} * (round_up(p.k, kQuantBlock) / 4);
    if (floats) round_row<Four<true>>(p, token, to, work.squares[token], layout);
    else if (halves) round_row<Eight>(p, token, to, work.squares[token], layout);
    else round_row<Four<false>>(p, token, to, work.squares[token], layout);
  }
}

// Matrix instructions of e4m3 add with about 14 bits and cut what lies below. So they start from zero every kExactK, and
// float32 takes what they have: an error far below that of rounding x to e4m3.
constexpr uint32_t kExactK = 512;

// Sums blocks first .. last of 64 rows in `kept`, by a warpgroup.
template <class L, uint32_t kCount>
__device__ void sum_e4m3(uint32_t first, uint32_t last, const L& layout, float (&block)[kCount], float (&kept)[kCount]) {
  static_assert(L::kWeightK == kBoxBytes && L::kOperandK == kBoxBytes);
  typename L::Rest& rest = layout.rest();
  Turn<L::kWeightStages> weights, freed_weights;
  Turn<L::kOperandStages> operands, freed_operands;
  const auto free = [&] {
    if (threadIdx.x % 32 == 0)
      arrive(rest.weights_empty[freed_weights.stage]), arrive(rest.operands_empty[freed_operands.stage]);
    freed_weights.advance(), freed_operands.advance();
  };
  const uint32_t row = __shfl_sync(~0u, threadIdx.x / 128, 0) * 64, stages = first < last ? (last - first) * 2 : 0;
  for (uint32_t from = 0; from < stages; from += kExactK / kBoxBytes) {
    const uint32_t end = min(from + kExactK / kBoxBytes, stages);
    for (uint32_t stage = from; stage < end; ++stage) {
      wait(rest.weights_full[weights.stage], weights.parity);
      wait(rest.operands_full[operands.stage], operands.parity);
      const uint32_t a = shared_address(layout.weights(weights.stage)) + row * kBoxBytes;
      const uint32_t b = shared_address(layout.operands(operands.stage));
      weights.advance(), operands.advance();
      wgmma_begin();
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) wgmma_e4m3(block, operand(a + i * 32), operand(b + i * 32), stage > from || i > 0);
      wgmma_commit();
      if (stage == from) continue;
      wgmma_wait<1>();
      free();
    }
    wgmma_wait<0>();
    settle(block);
    free();
#pragma unroll
    for (uint32_t i = 0; i < kCount; ++i) kept[i] += block[i];
  }
}
#endif

}  // namespace ingot::cuda

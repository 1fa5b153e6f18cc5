// Weights as tensor-core operands. Which k an element of an operand stands for is free as long as both operands agree, so
// a lane loads 16 bytes of one weight row as they lie in memory and multiplies them with the same k of x.
#pragma once
#include "product.h"

namespace ingot::cuda {

// d += a . b^T for 16 weight rows, 8 tokens and 16 k. Lane 4 g + t holds of a: rows g (a0, a2) and g + 8 (a1, a3); of b:
// token g; of d: rows g (d0, d1) and g + 8 (d2, d3) of tokens 2 t and 2 t + 1.
template <bool kHalf>
__device__ inline void mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  if constexpr (kHalf)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ inline uint32_t bits(__nv_bfloat162 v) { return *reinterpret_cast<uint32_t*>(&v); }
__device__ inline __nv_bfloat162 as_bf162(uint32_t v) { return *reinterpret_cast<__nv_bfloat162*>(&v); }

// Two bf16 from one int8 each, in the high and low half's low byte of `halves` = 0x43bb43bb: exact, since
// 0x4300 | b & 127 is 128 + (b & 127), and 0x4300 | b & 128 is 128 or 256.
__device__ inline uint32_t int8_pair(uint32_t halves) {
  return bits(__hsub2(as_bf162(halves & 0xff7fff7f), as_bf162(halves & 0xff80ff80)));
}

// Two bf16 from an e4m3 in each half, its sign in the highest bit of `signs`' half and the rest in bits 4 to 10 of
// `others`'. Exponent and fraction, taken for those of a bf16, give 2^-120 times the value, subnormals included; the
// product is exact.
__device__ inline uint32_t e4m3_pair(uint32_t signs, uint32_t others) {
  return bits(__hmul2(as_bf162((signs & 0x80008000) | (others & 0x07f007f0)), __float2bfloat162_rn(0x1p120f)));
}

// 16 bytes of a weight row: kElements whole k in order, but for int4, whose eights lie 0 4 1 5 2 6 3 7, and e4m3, whose
// fours lie as e4m3_place says.
struct FloatWeights {
  static constexpr uint32_t kElements = 8;
  static constexpr bool kQuantised = false, kInterleaved = false;
  // Eight elements as four registers of two.
  __device__ static uint4 eight(const uint4& raw, uint32_t, __nv_bfloat162) { return raw; }
};
struct Bf16Weights : FloatWeights { static constexpr bool kHalf = false; };
struct F16Weights : FloatWeights { static constexpr bool kHalf = true; };

struct Int8Weights {
  static constexpr uint32_t kElements = 16;
  static constexpr bool kHalf = false, kQuantised = true, kInterleaved = false;
  __device__ static uint4 eight(const uint4& raw, uint32_t i, __nv_bfloat162) {
    const uint32_t a = i ? raw.z : raw.x, b = i ? raw.w : raw.y, high = 0x43434343;
    return {int8_pair(__byte_perm(a, high, 0x4140)), int8_pair(__byte_perm(a, high, 0x4342)),
            int8_pair(__byte_perm(b, high, 0x4140)), int8_pair(__byte_perm(b, high, 0x4342))};
  }
};

struct E4m3Weights {
  static constexpr uint32_t kElements = 16;
  static constexpr bool kHalf = false, kQuantised = false, kInterleaved = false;
  __device__ static uint4 eight(const uint4& raw, uint32_t i, __nv_bfloat162) {
    const uint32_t a = i ? raw.z : raw.x, b = i ? raw.w : raw.y;
    return {e4m3_pair(a, a >> 4), e4m3_pair(a << 8, a << 4), e4m3_pair(b, b >> 4), e4m3_pair(b << 8, b << 4)};
  }
};

struct Int4Weights {
  static constexpr uint32_t kElements = 32;
  static constexpr bool kHalf = false, kQuantised = true, kInterleaved = true;
  // `factor` is the group's sub-scale. 0x4300 | v ^ 8 is 136 + v, and 136 * sub-scale is exact.
  __device__ static uint4 eight(const uint4& raw, uint32_t i, __nv_bfloat162 factor) {
    const uint32_t word = (i == 0 ? raw.x : i == 1 ? raw.y : i == 2 ? raw.z : raw.w) ^ 0x88888888;
    const __nv_bfloat162 offset = __hmul2(factor, __float2bfloat162_rn(-136.0f));
    const auto pair = [&](uint32_t v) { return bits(__hfma2(as_bf162(v & 0x000f000f | 0x43004300), factor, offset)); };
    return {pair(word), pair(word >> 4), pair(word >> 8), pair(word >> 12)};
  }
};

// A load of weights: read once, so kept out of L1, and whole lines into L2.
__device__ inline uint4 load_weights(const std::byte* address, bool valid) {
  uint4 v{};
  if (valid)
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(address));
  return v;
}

}  // namespace ingot::cuda

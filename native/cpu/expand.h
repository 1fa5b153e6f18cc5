// int4 weights as int8: quads of tile16x8 times their sub-scales, in the layout tile16x4.
#pragma once
#include "prefetch.h"
#include "product.h"

namespace ingot::cpu::INGOT_ISA {

// How far ahead nibbles are asked for, into L2: what is expanded meanwhile takes L1.
inline constexpr size_t kExpandAhead = 4096;

// Elements [ks.begin, ks.end) along K, multiples of 32 within the padded `k`, of one tile of 16 outputs. What lies
// `ahead` bytes on is prefetched.
inline void expand_tile(const Factors& factors, size_t k, size_t tile, Range ks, int8_t* out,
                        ptrdiff_t ahead = kExpandAhead) {
  constexpr size_t kGroupBytes = kQuantGroup * kLanes / 2, kVectorBytes = 64;
  const size_t groups = k / kQuantGroup;
  const uint8_t* nibbles = factors.weight.as<uint8_t>() + tile * groups * kGroupBytes;
  const int8_t* sub_scales = factors.sub_scales.as<int8_t>() + tile * groups * kLanes;
  for (size_t g = ks.begin / kQuantGroup; g < ks.end / kQuantGroup; ++g) {
    const Int4Expander expander(sub_scales + g * kLanes);
    for (size_t i = 0; i < kGroupBytes; i += kVectorBytes, out += 2 * kVectorBytes) {
      prefetch<kIntoL2>(nibbles + g * kGroupBytes + i + ahead);
      expander.expand(nibbles + g * kGroupBytes + i, out);
    }
  }
}

}  // namespace ingot::cpu::INGOT_ISA

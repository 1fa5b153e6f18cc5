// Rows of activations as int8, one scale a block of 256: what integer products read.
#pragma once
#include <algorithm>
#include <limits>

#include "../gen/abi.h"
#include "parallel.h"

namespace ingot::cpu::INGOT_ISA {

// Calls emit(i, q) for each 16 values from `x + i`, i < count rounded up to 16, and returns the scale, max|x| / 127; NaN
// where a value is NaN or infinite, for no integer is. Values past `count` are zero.
template <class Emit>
inline float quantize_block(const float* x, size_t count, const Emit& emit) {
  const auto values = [&](size_t i) { return load_n(x + i, count - i < kLanes ? count - i : kLanes); };
  Ints most = set_int(0);
  for (size_t i = 0; i < count; i += kLanes) most = max(most, magnitude_bits(values(i)));
  const float largest = as<float>(reduce_max(most));
  if (!(largest < kInfinity)) {
    for (size_t i = 0; i < count; i += kLanes) emit(i, set_int(0));
    return std::numeric_limits<float>::quiet_NaN();
  }
  // Finite, so that no product is NaN, or more than 127 when rounded.
  const float inverse = largest == 0 ? 0.0f : std::min(127.0f / largest, std::numeric_limits<float>::max());
  for (size_t i = 0; i < count; i += kLanes) emit(i, round_int(values(i) * set(inverse)));
  return largest / 127.0f;
}

// Quantises a row: `emit(k, q)` for each 16 values in order, `scale(block, s)` after those of a block.
template <class Emit, class Scale>
inline void quantize_row(const float* x, size_t width, const Emit& emit, const Scale& scale) {
  for (size_t block = 0; block * kQuantBlock < width; ++block) {
    const size_t begin = block * kQuantBlock, left = width - begin;
    scale(block, quantize_block(x + begin, left < kQuantBlock ? left : kQuantBlock,
                                [&](size_t i, Ints q) { emit(begin + i, q); }));
  }
}

}  // namespace ingot::cpu::INGOT_ISA

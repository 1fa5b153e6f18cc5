// Rows of activations as int8, one scale a block of 256: what integer products read.
#pragma once
#include "../gen/abi.h"
#include "parallel.h"

namespace ingot::cpu::INGOT_ISA {

// Calls emit(i, q) for each 16 values from `x + i`, i < count rounded up to 16, and returns the scale, max|x| / 127; NaN
// where a value is NaN or infinite, for no integer is. Values past `count` are zero.
template <class Emit>
inline float quantize_block(const float* x, size_t count, const Emit& emit) {
  const auto values = [&](size_t i) { return load_n(x + i, count - i < kLanes ? count - i : kLanes); };
  Vec most = zero(), none = zero();
  for (size_t i = 0; i < count; i += kLanes) {
    const Vec v = values(i);
    most = max(most, abs(v));
    none = none + (v - v);
  }
  const float largest = reduce_max(most);
  const Vec inverse = set(largest == 0 ? 0.0f : 127.0f / largest);
  for (size_t i = 0; i < count; i += kLanes) {
    const Vec scaled = max(values(i) * inverse, set(-127));
    emit(i, round_int(if_less(scaled, set(127), scaled, set(127))));
  }
  return largest / 127.0f + reduce_add(none);
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

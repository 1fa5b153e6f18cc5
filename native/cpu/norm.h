#pragma once
#include <cmath>

#include "simd.h"

namespace ingot::cpu::INGOT_ISA {

inline float sum_of_squares(const float* x, size_t width) {
  Vec sum = zero();
  for (size_t i = 0; i < width; i += kLanes) {
    const Vec v = load_n(x + i, width - i < kLanes ? width - i : kLanes);
    sum = fma(v, v, sum);
  }
  return reduce_add(sum);
}

// 1 / sqrt(mean(x^2) + eps)
inline float rms_factor(const float* x, size_t width, float eps) {
  return float(1.0 / std::sqrt(double(sum_of_squares(x, width)) / double(width) + double(eps)));
}

// out = x * factor * (offset + weight); weight nullptr: offset + weight is left out. out may be x.
inline void rms_scale(const float* x, const float* weight, float* out, size_t width, float factor, float offset) {
  for (size_t i = 0; i < width; i += kLanes) {
    const size_t n = width - i < kLanes ? width - i : kLanes;
    Vec y = load_n(x + i, n) * set(factor);
    if (weight) y = y * (set(offset) + load_n(weight + i, n));
    store_n(out + i, y, n);
  }
}

inline void rms_normalize(const float* x, const float* weight, float* out, size_t width, float eps, float offset) {
  rms_scale(x, weight, out, width, rms_factor(x, width, eps), offset);
}

}  // namespace ingot::cpu::INGOT_ISA

// Rotary position embedding of one head, shared by rope and attention.
#pragma once
#include <cmath>

#include "../gen/abi.h"
#include "simd.h"

namespace ingot::cpu::INGOT_ISA {

// The angle is f32, as in the models' own code; its cosine and sine are exact but for one rounding.
inline void rotary_angles(int32_t position, const float* inv_freq, size_t pairs, float factor, float* cosine,
                          float* sine) {
  for (size_t i = 0; i < pairs; ++i) {
    const float angle = float(position) * inv_freq[i];
    cosine[i] = float(std::cos(double(angle))) * factor;
    sine[i] = float(std::sin(double(angle))) * factor;
  }
}

// Turns the first 2 * pairs elements of x; out may be x.
inline void rotate(const float* x, float* out, size_t pairs, RopeStyle style, const float* cosine, const float* sine) {
  const size_t step = style == RopeStyle::half ? 1 : 2, other = style == RopeStyle::half ? pairs : 1;
  for (size_t i = 0; i < pairs; ++i) {
    const float a = x[i * step], b = x[i * step + other];
    out[i * step] = a * cosine[i] - b * sine[i];
    out[i * step + other] = b * cosine[i] + a * sine[i];
  }
}

}  // namespace ingot::cpu::INGOT_ISA

// Rotary position embedding of one head, shared by rope and attention.
#pragma once
#include <algorithm>

#include "../gen/abi.h"
#include "simd.h"

namespace ingot::cpu::INGOT_ISA {

// Sine and cosine of x, |x| < 2^22, in f64 and within 1e-13: Cody and Waite's reduction to a quarter turn, then Taylor
// series. Plain arithmetic without branches, so that a loop over it becomes vectors with the same bits everywhere.
inline void sine_cosine(double x, double& sine, double& cosine) {
  // 31 bits of pi / 2, and the rest; the sum with `magic` holds the nearest integer in its low bits.
  constexpr double high = 0x1.921fb544p+0, low = 0x1.0b4611a626331p-34, magic = 0x1.8p52;
  const double turns = x * 0x1.45f306dc9c883p-1 + magic, n = turns - magic;
  const double r = (x - n * high) - n * low, z = r * r;
  const double s = r + r * z * (-1.0 / 6 + z * (1.0 / 120 + z * (-1.0 / 5040 + z * (1.0 / 362880 +
                   z * (-1.0 / 39916800 + z * (1.0 / 6227020800))))));
  const double c = 1 + z * (-1.0 / 2 + z * (1.0 / 24 + z * (-1.0 / 720 + z * (1.0 / 40320 + z * (-1.0 / 3628800 +
                   z * (1.0 / 479001600 + z * (-1.0 / 87178291200)))))));
  const uint64_t quarter = as<uint64_t>(turns);
  const double a = quarter & 1 ? c : s, b = quarter & 1 ? s : c;
  sine = quarter & 2 ? -a : a;
  cosine = (quarter + 1) & 2 ? -b : b;
}

// The angle is f32, as in the models' own code; its cosine and sine are exact but for one rounding.
inline void rotary_angles(int32_t position, const float* inv_freq, size_t pairs, float factor, float* cosine,
                          float* sine) {
  for (size_t from = 0; from < pairs; from += kLanes) {
    const size_t n = std::min(pairs - from, kLanes);
    double x[kLanes] = {}, s[kLanes], c[kLanes];
    for (size_t i = 0; i < n; ++i) x[i] = double(float(position) * inv_freq[from + i]);
    for (size_t i = 0; i < kLanes; ++i) sine_cosine(x[i], s[i], c[i]);
    for (size_t i = 0; i < n; ++i) {
      cosine[from + i] = float(c[i]) * factor;
      sine[from + i] = float(s[i]) * factor;
    }
  }
}

// Turns the first 2 * pairs elements of x; out may be x.
inline void rotate(const float* x, float* out, size_t pairs, RopeStyle style, const float* cosine, const float* sine) {
  if (style == RopeStyle::half) {
    for (size_t i = 0; i < pairs; i += kLanes) {
      const size_t n = std::min(pairs - i, kLanes);
      const Vec a = load_n(x + i, n), b = load_n(x + pairs + i, n), c = load_n(cosine + i, n), s = load_n(sine + i, n);
      store_n(out + i, a * c - b * s, n);
      store_n(out + pairs + i, b * c + a * s, n);
    }
    return;
  }
  for (size_t i = 0; i < pairs; ++i) {
    const float a = x[2 * i], b = x[2 * i + 1];
    out[2 * i] = a * cosine[i] - b * sine[i];
    out[2 * i + 1] = b * cosine[i] + a * sine[i];
  }
}

}  // namespace ingot::cpu::INGOT_ISA

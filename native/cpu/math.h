// Elementary functions on sixteen lanes: own polynomials in f32, so that every instruction set gives the same bits.
#pragma once
#include "../gen/abi.h"
#include "simd.h"

namespace ingot::cpu::INGOT_ISA {

template <size_t N>
inline Vec polynomial(Vec x, const float (&coefficients)[N]) {  // lowest power first
  Vec y = set(coefficients[N - 1]);
  for (size_t i = N - 1; i-- > 0;) y = fma(y, x, set(coefficients[i]));
  return y;
}

// e^x for x <= 88, within 2 ulp; e^0 is exactly 1, and 0 below the smallest normal number.
inline Vec exp(Vec x) {
  static constexpr float series[] = {1, 1, 1.0f / 2, 1.0f / 6, 1.0f / 24, 1.0f / 120, 1.0f / 720, 1.0f / 5040};
  const Vec least = set(-87.33654f), magic = set(0x1.8p23f);
  const Vec y = max(least, x);
  const Vec n = (y * set(1.44269504f) + magic) - magic;
  const Vec r = fma(n, set(-1.42860677e-6f), fma(n, set(-0.693145752f), y));
  const Vec power = shift_left_23(n + set(0x1.8p23f + 127));
  return if_less(x, least, zero(), polynomial(r, series) * power);
}

[[gnu::always_inline]] inline Vec sigmoid(Vec x) {
  const Vec e = exp(zero() - abs(x));
  return if_less(x, zero(), e, set(1)) / (set(1) + e);
}

inline Vec tanh(Vec x) {
  // (tanh(x) / x - 1) / x^2 as a polynomial of x^2, |x| < 0.63
  static constexpr float series[] = {-0.33333328f, 0.13332719f, -0.05384331f, 0.02096152f, -0.00604541f};
  const Vec a = abs(x), z = x * x;
  const Vec small = fma(x * z, polynomial(z, series), x);
  const Vec e = exp(a * set(-2));
  const Vec large = (set(1) - e) / (set(1) + e);
  return if_less(a, set(0.625f), small, if_less(x, zero(), zero() - large, large));
}

// x times the normal distribution function of x.
inline Vec gelu(Vec x) {
  // erfc(z) e^(z^2) / t as a polynomial of t = 1 / (1 + 0.4 z), z >= 0
  static constexpr float series[] = {0.22562630f, 0.22657567f,  0.20095891f,  0.19696173f, 0.07151139f,
                                     0.09972505f, 0.073846161f, -0.13547306f, 0.040267907f};
  const Vec z = abs(x) * set(0.70710678f);
  const Vec t = set(1) / fma(z, set(0.4f), set(1));
  const Vec tail = exp(x * x * set(-0.5f)) * t * polynomial(t, series) * set(0.5f);
  return x * if_less(x, zero(), tail, set(1) - tail);
}

inline Vec gelu_tanh(Vec x) {
  const Vec inner = x * fma(x * x, set(0.044715f), set(1));
  return x * sigmoid(inner * set(1.59576912f));  // (1 + tanh(u)) / 2 = sigmoid(2 u), u = sqrt(2 / pi) inner
}

template <Activation kActivation>
[[gnu::always_inline]] inline Vec activate(Vec x) {
  switch (kActivation) {
    case Activation::none: return x;
    case Activation::silu: return x * sigmoid(x);
    case Activation::gelu: return gelu(x);
    case Activation::gelu_tanh: return gelu_tanh(x);
    case Activation::relu: return max(zero(), x);
    case Activation::sigmoid: return sigmoid(x);
    case Activation::tanh: return tanh(x);
    case Activation::relu2: return max(zero(), x) * max(zero(), x);
  }
}

// Calls f with an activation as a constant.
template <class F>
inline auto with_activation(Activation activation, const F& f) {
  switch (activation) {
    case Activation::silu: return f.template operator()<Activation::silu>();
    case Activation::gelu: return f.template operator()<Activation::gelu>();
    case Activation::gelu_tanh: return f.template operator()<Activation::gelu_tanh>();
    case Activation::relu: return f.template operator()<Activation::relu>();
    case Activation::sigmoid: return f.template operator()<Activation::sigmoid>();
    case Activation::tanh: return f.template operator()<Activation::tanh>();
    case Activation::relu2: return f.template operator()<Activation::relu2>();
    case Activation::none: break;
  }
  return f.template operator()<Activation::none>();
}
inline Vec activate(Activation activation, Vec x) {
  return with_activation(activation, [&]<Activation kActivation>() { return activate<kActivation>(x); });
}

// cap * tanh(x / cap)
inline Vec softcap(Vec x, float cap) { return set(cap) * tanh(x / set(cap)); }

}  // namespace ingot::cpu::INGOT_ISA

// Pointwise functions of abi/ops/define.ts, in f32. What is no number stays none.
#pragma once
#include "../core/kernel.h"

namespace ingot::cuda {

// By instructions without rare cases to branch to: within 4 + 1.2 |x| ulp, and zero where it would be subnormal.
__device__ inline float sigmoid(float x) {
  float power, y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * -1.44269504f));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(1.0f + power));
  return y;
}

// x times the normal distribution function of x.
__device__ inline float gelu(float x) { return 0.5f * x * erfcf(-0.70710678f * x); }

__device__ inline float gelu_tanh(float x) {
  const float inner = x * fmaf(x * x, 0.044715f, 1.0f);
  return x * sigmoid(inner * 1.59576912f);  // (1 + tanh(u)) / 2 = sigmoid(2 u), u = sqrt(2 / pi) inner
}

__device__ inline float relu(float x) { return x < 0 ? 0.0f : x; }  // fmaxf would lose NaN

// Those that take many instructions are apart, not in the way of those that take few.
__device__ __noinline__ inline float activate_apart(Activation activation, float x) {
  switch (activation) {
    case Activation::gelu: return gelu(x);
    case Activation::gelu_tanh: return gelu_tanh(x);
    case Activation::relu: return relu(x);
    case Activation::sigmoid: return sigmoid(x);
    case Activation::tanh: return tanhf(x);
    case Activation::relu2: return relu(x) * relu(x);
    default: return x;
  }
}

__device__ inline float activate(Activation activation, float x) {
  if (activation == Activation::none) return x;
  return activation == Activation::silu ? x * sigmoid(x) : activate_apart(activation, x);
}
__device__ inline void activate(Activation activation, float (&x)[4]) {
  if (activation == Activation::none) return;
  if (activation == Activation::silu)
    for (uint32_t j = 0; j < 4; ++j) x[j] *= sigmoid(x[j]);
  else
    for (uint32_t j = 0; j < 4; ++j) x[j] = activate_apart(activation, x[j]);
}

// cap * tanh(x / cap)
__device__ __noinline__ inline float softcap(float x, float cap) { return cap * tanhf(x / cap); }

}  // namespace ingot::cuda

// Pointwise functions of abi/ops/define.ts, in f32. What is no number stays none.
#pragma once
#include "../core/kernel.h"

namespace ingot::cuda {

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + __expf(-x)); }

// x times the normal distribution function of x.
__device__ inline float gelu(float x) { return 0.5f * x * erfcf(-0.70710678f * x); }

__device__ inline float gelu_tanh(float x) {
  const float inner = x * fmaf(x * x, 0.044715f, 1.0f);
  return x * sigmoid(inner * 1.59576912f);  // (1 + tanh(u)) / 2 = sigmoid(2 u), u = sqrt(2 / pi) inner
}

__device__ inline float relu(float x) { return x < 0 ? 0.0f : x; }  // fmaxf would lose NaN

__device__ inline float activate(Activation activation, float x) {
  switch (activation) {
    case Activation::none: return x;
    case Activation::silu: return x * sigmoid(x);
    case Activation::gelu: return gelu(x);
    case Activation::gelu_tanh: return gelu_tanh(x);
    case Activation::relu: return relu(x);
    case Activation::sigmoid: return sigmoid(x);
    case Activation::tanh: return tanhf(x);
    case Activation::relu2: return relu(x) * relu(x);
  }
  return x;
}

// Of four at once; those that take many instructions are not in the way of those that take few.
__device__ __noinline__ inline float activate_apart(Activation activation, float x) { return activate(activation, x); }
__device__ inline void activate(Activation activation, float (&x)[4]) {
  if (activation == Activation::none) return;
  if (activation == Activation::silu)
    for (uint32_t j = 0; j < 4; ++j) x[j] *= sigmoid(x[j]);
  else
    for (uint32_t j = 0; j < 4; ++j) x[j] = activate_apart(activation, x[j]);
}

// cap * tanh(x / cap)
__device__ inline float softcap(float x, float cap) { return cap * tanhf(x / cap); }
__device__ __noinline__ inline float softcap_apart(float x, float cap) { return softcap(x, cap); }

}  // namespace ingot::cuda

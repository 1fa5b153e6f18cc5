// Pointwise functions of abi/ops/define.ts, in f32.
#pragma once
#include "../gen/abi.h"

namespace ingot::cuda {

__device__ inline float activate(Activation activation, float x) {
  switch (activation) {
    case Activation::none: return x;
    case Activation::silu: return x / (1 + expf(-x));
    case Activation::gelu: return 0.5f * x * (1 + erff(x * 0.70710678f));
    case Activation::gelu_tanh: return 0.5f * x * (1 + tanhf(0.79788456f * x * fmaf(x * x, 0.044715f, 1)));
    case Activation::relu: return fmaxf(x, 0);
    case Activation::sigmoid: return 1 / (1 + expf(-x));
    case Activation::tanh: return tanhf(x);
    case Activation::relu2: return fmaxf(x, 0) * fmaxf(x, 0);
  }
  return x;
}

}  // namespace ingot::cuda

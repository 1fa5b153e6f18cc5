// One value in and out of a register, whatever its dtype: f32, or bf16 or f16 where only products read it.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernel.h"

namespace ingot::cuda {

__device__ inline float load(const Matrix& m, size_t row, uint32_t column) {
  const std::byte* at = m.data + row * m.stride;
  switch (m.dtype) {
    case DType::bf16: return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(at)[column]);
    case DType::f16: return __half2float(reinterpret_cast<const __half*>(at)[column]);
    default: return reinterpret_cast<const float*>(at)[column];
  }
}

__device__ inline void store(const Matrix& m, size_t row, uint32_t column, float value) {
  std::byte* at = m.data + row * m.stride;
  switch (m.dtype) {
    case DType::bf16: reinterpret_cast<__nv_bfloat16*>(at)[column] = __float2bfloat16(value); break;
    case DType::f16: reinterpret_cast<__half*>(at)[column] = __float2half(value); break;
    default: reinterpret_cast<float*>(at)[column] = value;
  }
}

}  // namespace ingot::cuda

// The kernels that product() chooses from, and what they share.
#pragma once
#include "product.h"

namespace ingot::cuda {

constexpr uint32_t kStreamTokens = 32;  // at most, for each pass over the weights

constexpr float kMostE4m3 = 448;

constexpr size_t kCounterBytes = 256;  // at the start of the workspace, zeros between launches

uint32_t stream_passes(const Device& device, const Product& p);
cudaError_t product_stream(const Context& context, const Product& p);  // few tokens; any number, in passes
size_t stream_shared(const Product& p);                                // bytes of a block that takes one token
bool tile_can(const Device& device, const Product& p);
size_t tile_workspace(const Product& p);
cudaError_t product_tile(const Context& context, const Product& p);    // any number on Hopper; the bits of the stream
bool tile_rounded_can(const Device& device, const Product& p);
size_t tile_rounded_workspace(const Product& p);
cudaError_t product_tile_rounded(const Context& context, const Product& p);  // of e4m3 or int8, both operands
bool blas_can(const Product& p);
size_t blas_workspace(const Product& p);
cudaError_t product_blas(const Context& context, const Product& p);    // many tokens; bits depend on how many
cudaError_t product_f32(const Context& context, const Product& p);     // f32 weights

template <class K>
cudaError_t allow_shared(K* kernel, size_t bytes) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
}

#ifdef __CUDACC__
__device__ inline float warp_sum(float v) {
  for (uint32_t i = 16; i; i /= 2) v += __shfl_xor_sync(~0u, v, i);
  return v;
}

__device__ inline float warp_max(float v) {
  for (uint32_t i = 16; i; i /= 2) v = fmaxf(v, __shfl_xor_sync(~0u, v, i));
  return v;
}

// 1 / sqrt(mean(x^2) + eps) from sums of squares, added in order; 1 without a norm.
__device__ inline float inverse_rms(const Product& p, const float* squares, uint32_t count) {
  if (!p.norm) return 1;
  float sum = 0;
  for (uint32_t i = 0; i < count; ++i) sum += squares[i];
  return 1.0f / sqrtf(sum / float(p.k) + p.norm_eps);
}

template <bool kHalf>
__device__ inline uint32_t pack(float a, float b) {
  if constexpr (kHalf) {
    const __half2 v = __floats2half2_rn(a, b);
    return *reinterpret_cast<const uint32_t*>(&v);
  } else {
    const __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
    return *reinterpret_cast<const uint32_t*>(&v);
  }
}

// Whether four elements of a row, from a multiple of four on, lie as one.
__device__ inline bool in_fours(const Matrix& m) {
  return m.stride % 16 == 0 && reinterpret_cast<size_t>(m.data) % 16 == 0;
}

// Four outputs of a row from `column` on, those below n, one by one: apart, for code that runs once waits to be fetched.
__device__ __noinline__ inline void store_apart(std::byte* row, DType dtype, uint32_t column, uint32_t n, float4 y) {
  const Matrix one{row, 0, 1, n, dtype};
  const float four[4] = {y.x, y.y, y.z, y.w};
  for (uint32_t j = 0; j < 4; ++j)
    if (column + j < n) store_float(one, 0, column + j, four[j]);
}

// Four outputs from `column` on, those below n.
__device__ inline void store_outputs(const Matrix& out, uint32_t token, uint32_t column, uint32_t n,
                                     const float (&y)[4]) {
  const bool whole = column + 3 < n && in_fours(out);
  if (whole && out.dtype == DType::f32)
    *reinterpret_cast<float4*>(row_of<float>(out, token) + column) = {y[0], y[1], y[2], y[3]};
  else if (whole && out.dtype == DType::bf16)
    *reinterpret_cast<uint2*>(row_of<uint16_t>(out, token) + column) = {pack<false>(y[0], y[1]),
                                                                        pack<false>(y[2], y[3])};
  else
    store_apart(row_of<std::byte>(out, token), out.dtype, column, n, {y[0], y[1], y[2], y[3]});
}

// Four residuals from `column` on, those below n, one by one.
__device__ __noinline__ inline float4 residuals_apart(const float* row, uint32_t column, uint32_t n) {
  float four[4];
  for (uint32_t j = 0; j < 4; ++j) four[j] = column + j < n ? row[column + j] : 0;
  return {four[0], four[1], four[2], four[3]};
}

// What the norm multiplies elements c .. c + 3 by; 1 without one.
__device__ inline void load_norm(const Product& p, uint32_t c, float (&v)[4]) {
  if (p.norm && c + 3 < p.k) {
    const float4 f = __ldg(reinterpret_cast<const float4*>(p.norm + c));
    v[0] = p.norm_offset + f.x, v[1] = p.norm_offset + f.y, v[2] = p.norm_offset + f.z, v[3] = p.norm_offset + f.w;
    return;
  }
  for (uint32_t j = 0; j < 4; ++j) v[j] = !p.norm ? 1 : c + j < p.k ? p.norm_offset + __ldg(p.norm + c + j) : 0;
}

// Elements c .. c + 3 of a row of k, zeros past its end; `wide`: rows start at multiples of 16 bytes and k is one of 4.
__device__ inline void load_four(const Matrix& m, uint32_t row, uint32_t c, uint32_t k, bool wide, float (&v)[4]) {
  if (wide && c < k) {
    if (m.dtype == DType::f32) {
      const float4 f = *reinterpret_cast<const float4*>(row_of<const float>(m, row) + c);
      v[0] = f.x, v[1] = f.y, v[2] = f.z, v[3] = f.w;
      return;
    }
    const uint2 raw = *reinterpret_cast<const uint2*>(row_of<const uint16_t>(m, row) + c);
    const uint32_t words[2] = {raw.x, raw.y};
    for (uint32_t i = 0; i < 2; ++i) {
      const float2 f = m.dtype == DType::bf16 ? __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&words[i]))
                                              : __half22float2(*reinterpret_cast<const __half2*>(&words[i]));
      v[2 * i] = f.x, v[2 * i + 1] = f.y;
    }
    return;
  }
  for (uint32_t j = 0; j < 4; ++j) v[j] = c + j < k ? load_as_float(m, row, c + j) : 0;
}
#endif

}  // namespace ingot::cuda

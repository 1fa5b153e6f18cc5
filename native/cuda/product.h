// The product behind linear and logits: out = residual + activation(softcap(scale * (x . weight^T + bias))).
//
// The order of every sum is fixed by the shape and the dtype of the weights alone, whatever the number of rows and the
// kernel (but for cuBLASLt and operands of e4m3 or int8, of the default mode): K is cut into blocks of 256 and those,
// evenly, into at most 8 runs; a run is summed by tensor cores from zero, 16 products at a time; the runs of a group are
// added in order, and so are the groups. Quantised weights start from zero at every block, whose sum is fused into that of the run times
// the block's scale; those of e4m3, whose rows have one scale, are summed as floats are.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "activation.h"
#include "launch.h"

namespace ingot::cuda {

constexpr uint32_t kTile = 16, kPadK = 32, kRuns = 8;
static_assert(kTile == kBranchRun);

__host__ __device__ constexpr uint32_t ceil_div(uint32_t a, uint32_t b) { return (a + b - 1) / b; }
__host__ __device__ constexpr uint32_t round_up(uint32_t a, uint32_t b) { return ceil_div(a, b) * b; }

// What a kernel is given, by value.
struct Product {
  Matrix x, residual, out;  // residual is f32
  const std::byte* weight;
  const __half* scales;      // (weight rows, blocks of 256), of int8 and int4; nullptr: of others
  const float* row_scales;   // (weight rows), of e4m3; nullptr: of others
  const int8_t* sub_scales;  // (weight rows, groups of 32); nullptr: not int4
  const float* bias;         // (weight rows)
  const float* norm;         // (k); nullptr: x as it is
  float norm_eps, norm_offset, scale, softcap;
  Activation activation;
  DType dtype;               // of the weight
  uint32_t n, k, branches;   // outputs; weight has branches * n rows

  __host__ __device__ uint32_t tokens() const { return x.rows; }
  __host__ __device__ uint32_t tiles() const { return ceil_div(branches * n, kTile); }
  __host__ __device__ uint32_t blocks() const { return ceil_div(k, kQuantBlock); }
};

__host__ __device__ inline uint32_t run_blocks(const Product& p) { return ceil_div(p.blocks(), kRuns); }

// Groups of runs (or of other parts of K), which different blocks can sum: as few as leave each the fewest, where clusters
// of so many blocks, each of 128 weight rows, run all at once: kAtOnce of them on an H200 by its occupancy, or a few less.
__host__ __device__ inline uint32_t groups_of(const Product& p, uint32_t parts = kRuns) {
  constexpr uint32_t kAtOnce[] = {0, 132, 66, 38, 30, 22, 16, 14, 14};
  const uint32_t rows = ceil_div(p.tiles(), 8);
  uint32_t groups = 1;
  for (uint32_t more = 2; more < sizeof kAtOnce / sizeof *kAtOnce; ++more)
    if (rows <= kAtOnce[more] && ceil_div(parts, more) < ceil_div(parts, groups)) groups = more;
  return groups;
}
// Runs of a group; the last may have fewer.
__host__ __device__ inline uint32_t group_runs(const Product& p) { return ceil_div(kRuns, groups_of(p)); }

cudaError_t product(const Context& context, const Product& p);
size_t product_workspace(const Device& device, const Product& p);
size_t product_shared(const Product& p);  // as SharedBytes
Choices product_choices(const Device& device, const Product& p, bool deterministic);  // stream, tile, tile_rounded, blas
size_t product_choice_workspace(const Product& p, Choice choice);

#ifdef __CUDACC__
template <class T>
__device__ inline T* row_of(const Matrix& m, uint32_t r) { return reinterpret_cast<T*>(m.data + r * m.stride); }

__device__ inline float load_as_float(const Matrix& m, uint32_t row, uint32_t column) {
  switch (m.dtype) {
    case DType::bf16: return __bfloat162float(row_of<const __nv_bfloat16>(m, row)[column]);
    case DType::f16: return __half2float(row_of<const __half>(m, row)[column]);
    default: return row_of<const float>(m, row)[column];
  }
}

__device__ inline void store_float(const Matrix& m, uint32_t row, uint32_t column, float y) {
  switch (m.dtype) {
    case DType::bf16: row_of<__nv_bfloat16>(m, row)[column] = __float2bfloat16(y); break;
    case DType::f16: row_of<__half>(m, row)[column] = __float2half(y); break;
    default: row_of<float>(m, row)[column] = y;
  }
}

// A finished sum of weight row `r` with its scale, bias, scale and cap.
__device__ inline float biased(const Product& p, uint32_t r, float sum) {
  if (p.row_scales) sum *= p.row_scales[r];
  float y = p.bias ? sum + p.bias[r] : sum;
  y *= p.scale;
  return p.softcap > 0 ? softcap(y, p.softcap) : y;
}

// Output `column` from the finished sums of its weight row and, of two branches, of the row that the first multiplies,
// kTile behind.
__device__ inline float finished(const Product& p, uint32_t column, float sum, float other, float residual) {
  const uint32_t r = p.branches == 2 ? column + column / kTile * kTile : column;
  float y = activate(p.activation, biased(p, r, sum));
  if (p.branches == 2) y *= biased(p, r + kTile, other);
  return p.residual.data ? y + residual : y;
}

// Scales and biases of four weight rows, of any number of tokens; those that there are none of are 1 and kNothing, which
// change no bit of what they meet.
constexpr float kNothing = -0.0f;
struct FourRows {
  float4 scale, bias;

  // Four finished sums as `biased` makes them.
  __device__ void apply(const Product& p, float (&y)[4]) const {
    const float by[4] = {scale.x, scale.y, scale.z, scale.w}, plus[4] = {bias.x, bias.y, bias.z, bias.w};
    for (uint32_t j = 0; j < 4; ++j) y[j] = (y[j] * by[j] + plus[j]) * p.scale;
    if (p.softcap > 0)
      for (uint32_t j = 0; j < 4; ++j) y[j] = softcap(y[j], p.softcap);
  }
};

__device__ inline void finish(const Product& p, uint32_t token, uint32_t column, float sum, float other,
                              float residual) {
  store_float(p.out, token, column, finished(p, column, sum, other, residual));
}

__device__ inline float residual_of(const Product& p, uint32_t token, uint32_t column) {
  return p.residual.data ? row_of<const float>(p.residual, token)[column] : 0;
}
#endif

}  // namespace ingot::cuda

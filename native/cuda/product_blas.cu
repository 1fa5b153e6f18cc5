// Products of many tokens in the default mode: cuBLASLt, with own kernels before it (norm, rounding, whole weights of
// quantised ones) and after it (what it cannot fuse).
#include <algorithm>

#include "cublaslt.h"
#include "mma.h"
#include "product_kernels.h"

namespace ingot::cuda {
namespace {

constexpr uint32_t kThreads = 256;
constexpr size_t kSliceElements = size_t{64} << 20;  // of weights made whole at once
constexpr uint32_t kSliceRows = 65535;               // at most: of a grid's second dimension

DType operand_of(const Product& p) { return p.dtype == DType::f16 ? DType::f16 : DType::bf16; }
bool quantised(const Product& p) { return p.scales != nullptr; }
bool lines(const Matrix& m) { return m.stride % 16 == 0 && reinterpret_cast<size_t>(m.data) % 16 == 0; }
// x can be an operand as it lies.
bool ready(const Product& p) { return !p.norm && p.x.dtype == operand_of(p) && lines(p.x); }
// out = sums (+ residual), which cuBLASLt writes itself.
bool plain(const Product& p) {
  return p.branches == 1 && !p.bias && p.activation == Activation::none && p.softcap == 0 &&
         (!p.residual.data || p.out.dtype == DType::f32) && (p.out.dtype == DType::f32 || p.out.dtype == operand_of(p));
}
// f16 sums could overflow.
DType scratch_type(const Product& p) {
  return p.branches == 2 && operand_of(p) == DType::bf16 ? DType::bf16 : DType::f32;
}
uint32_t slice_rows(const Product& p) {
  const uint32_t rows = p.branches * p.n, unit = kTile * p.branches;
  if (!quantised(p)) return rows;
  const uint32_t fit = std::min(uint32_t(kSliceElements / round_up(p.k, kPadK)), kSliceRows) / unit * unit;
  return fit < unit ? unit : fit < rows ? fit : rows;
}

// Where the parts of the workspace start.
struct Parts {
  size_t rows, weights, sums, end;
};
Parts parts_of(const Product& p) {
  const auto pages = [](size_t bytes) { return (bytes + 255) / 256 * 256; };
  const size_t k = round_up(p.k, kPadK);
  Parts parts{};
  parts.rows = kCounterBytes + kCublasWorkspace;
  parts.weights = parts.rows + (ready(p) ? 0 : pages(p.tokens() * k * 2));
  parts.sums = parts.weights + (quantised(p) ? pages(slice_rows(p) * k * 2) : 0);
  parts.end = parts.sums + (plain(p) ? 0 : pages(size_t{p.tokens()} * slice_rows(p) * byte_size(scratch_type(p), 1)));
  return parts;
}

// Eight elements of a row whose stride is a multiple of 16 bytes, those past its end zero.
__device__ void load_eight(const Matrix& m, uint32_t row, uint32_t c, float (&v)[8]) {
  if (c + 8 > m.width) {
    for (uint32_t j = 0; j < 8; ++j) v[j] = c + j < m.width ? load_as_float(m, row, c + j) : 0;
  } else if (m.dtype == DType::f32) {
    const float4* from = reinterpret_cast<const float4*>(row_of<const float>(m, row) + c);
    const float4 a = from[0], b = from[1];
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
  } else {
    const uint4 raw = *reinterpret_cast<const uint4*>(row_of<const uint16_t>(m, row) + c);
    const uint32_t pairs[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) {
      v[2 * j] = __uint_as_float(pairs[j] << 16);
      v[2 * j + 1] = __uint_as_float(pairs[j] & 0xffff0000);
    }
  }
}

// A block a row: x, normalised where there is a norm, rounded to operands with zeros up to a multiple of 32.
template <bool kHalf>
__global__ __launch_bounds__(kThreads) void round_rows(const Product p, uint16_t* to) {
  __shared__ float squares[kThreads / 32];
  let_next_start();
  wait_for_inputs();
  const uint32_t token = blockIdx.x, end = round_up(p.k, kPadK);
  const bool wide = p.k % 4 == 0 && p.x.stride % 16 == 0 && reinterpret_cast<size_t>(p.x.data) % 16 == 0;
  float factor = 1, v[4];
  if (p.norm) {
    float sum = 0;
    for (uint32_t c = threadIdx.x * 4; c < end; c += kThreads * 4) {
      load_four(p.x, token, c, p.k, wide, v);
      for (uint32_t j = 0; j < 4; ++j) sum = fmaf(v[j], v[j], sum);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) squares[threadIdx.x / 32] = sum;
    __syncthreads();
    factor = inverse_rms(p, squares, kThreads / 32);
  }
  for (uint32_t c = threadIdx.x * 4; c < end; c += kThreads * 4) {
    load_four(p.x, token, c, p.k, wide, v);
    if (p.norm)
      for (uint32_t j = 0; j < 4; ++j) v[j] *= factor * (c + j < p.k ? p.norm_offset + __ldg(p.norm + c + j) : 0);
    *reinterpret_cast<uint2*>(to + size_t{token} * end + c) = {pack<kHalf>(v[0], v[1]), pack<kHalf>(v[2], v[3])};
  }
}

// Rows first .. first + gridDim.y of a quantised weight as bf16; a thread makes the eight at its place.
__global__ __launch_bounds__(kThreads) void make_whole(const Product p, uint32_t first, __nv_bfloat16* to) {
  let_next_start();
  wait_for_inputs();
  const uint32_t stride = round_up(p.k, kPadK), c = (blockIdx.x * kThreads + threadIdx.x) * 8, row = first + blockIdx.y;
  if (c >= stride) return;
  const float scale = c < p.k ? __half2float(__ldg(p.scales + size_t{row} * p.blocks() + c / kQuantBlock)) : 0;
  float v[8];
  if (p.dtype == DType::i8) {
    const uint2 raw = __ldg(reinterpret_cast<const uint2*>(p.weight + size_t{row} * stride + c));
    for (uint32_t i = 0; i < 8; ++i) v[i] = scale * float(int8_t((i < 4 ? raw.x : raw.y) >> i % 4 * 8));
  } else {
    const uint32_t raw = __ldg(reinterpret_cast<const uint32_t*>(p.weight + (size_t{row} * stride + c) / 2));
    const size_t group = size_t{row} * ceil_div(p.k, kQuantGroup) + c / kQuantGroup;
    const float factor = c < p.k ? scale * float(p.sub_scales[group]) : 0;
    for (uint32_t i = 0; i < 8; ++i) v[i] = factor * float(int32_t(raw << (28 - 4 * i)) >> 28);
  }
  *reinterpret_cast<uint4*>(to + size_t{blockIdx.y} * stride + c) = {pack<false>(v[0], v[1]), pack<false>(v[2], v[3]),
                                                                     pack<false>(v[4], v[5]), pack<false>(v[6], v[7])};
}

// out from sums (tokens, rows of the slice), eight a thread; outputs begin at `first` columns.
__global__ __launch_bounds__(kThreads) void finish_sums(const Product p, Matrix sums, uint32_t first,
                                                        uint32_t columns) {
  let_next_start();
  const uint32_t i = (blockIdx.x * kThreads + threadIdx.x) * 8, token = blockIdx.y;
  wait_for_inputs();
  if (i >= columns) return;
  const uint32_t r = p.branches == 2 ? i + i / kTile * kTile : i;
  float sum[8], other[8] = {}, y[8];
  load_eight(sums, token, r, sum);
  if (p.branches == 2) load_eight(sums, token, r + kTile, other);
#pragma unroll
  for (uint32_t j = 0; j < 8; ++j)
    y[j] = i + j < columns ? finished(p, first + i + j, sum[j], other[j], residual_of(p, token, first + i + j)) : 0;
  store_outputs(p.out, token, first + i, first + columns, {y[0], y[1], y[2], y[3]});
  store_outputs(p.out, token, first + i + 4, first + columns, {y[4], y[5], y[6], y[7]});
}

// One slice of weight rows.
cudaError_t slice(const Context& context, const Product& p, const Parts& parts, const void* x, size_t ldx,
                  uint32_t first, uint32_t rows) {
  const size_t k = round_up(p.k, kPadK);
  std::byte* work = context.workspace.data;
  const void* weight = p.weight + size_t{first} * k * 2;
  if (quantised(p)) {
    auto* whole = reinterpret_cast<__nv_bfloat16*>(work + parts.weights);
    const Grid grid{{ceil_div(uint32_t(k), kThreads * 8), rows}, kThreads};
    if (const cudaError_t e = launch(context, make_whole, grid, p, first, whole)) return e;
    weight = whole;
  }
  const DType result = plain(p) ? p.out.dtype : scratch_type(p);
  const size_t size = byte_size(result, 1);
  Matrix sums{work + parts.sums, rows * size, p.tokens(), rows, result};
  if (plain(p)) sums = {p.out.data + first * size, p.out.stride, p.tokens(), rows, result};
  const bool add = plain(p) && p.residual.data;
  const void* c = add ? p.residual.data + first * size : sums.data;
  Gemm gemm{rows, p.tokens(), p.k, operand_of(p), result, weight, x, c, sums.data, k, ldx,
                  (add ? p.residual.stride : sums.stride) / size, sums.stride / size, plain(p) ? p.scale : 1.0f,
                  add ? 1.0f : 0.0f};
  if (context.choice > Choice::blas && context.choice <= Choice::blas_4)
    gemm.algorithm = uint32_t(context.choice) - uint32_t(Choice::blas);
  if (const cudaError_t e = cublaslt_gemm(context, gemm, work + kCounterBytes)) return e;
  if (plain(p)) return cudaSuccess;
  const uint32_t columns = rows / p.branches;
  const Grid grid{{ceil_div(columns, kThreads * 8), p.tokens()}, kThreads};
  return launch(context, finish_sums, grid, p, sums, first / p.branches, columns);
}

}  // namespace

bool blas_can(const Product& p) {
  const size_t size = byte_size(p.out.dtype, 1);
  const bool aligned = plain(p) ? lines(p.out) && (!p.residual.data || lines(p.residual)) && p.n * size % 16 == 0
                                : p.branches * p.n % 8 == 0;
  return p.dtype != DType::f32 && p.k % 8 == 0 && aligned && !cublaslt_unavailable();
}

size_t blas_workspace(const Product& p) { return parts_of(p).end; }

cudaError_t product_blas(const Context& context, const Product& p) {
  const Parts parts = parts_of(p);
  const uint32_t all = p.branches * p.n, step = slice_rows(p);
  const void* x = p.x.data;
  size_t ldx = p.x.stride / 2;
  if (!ready(p)) {
    auto* rows = reinterpret_cast<uint16_t*>(context.workspace.data + parts.rows);
    const auto kernel = operand_of(p) == DType::f16 ? round_rows<true> : round_rows<false>;
    if (const cudaError_t e = launch(context, kernel, {{p.tokens()}, kThreads}, p, rows)) return e;
    x = rows, ldx = round_up(p.k, kPadK);
  }
  for (uint32_t first = 0; first < all; first += step) {
    const uint32_t rows = all - first < step ? all - first : step;
    if (const cudaError_t e = slice(context, p, parts, x, ldx, first, rows)) return e;
  }
  return cudaSuccess;
}

}  // namespace ingot::cuda

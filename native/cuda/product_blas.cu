// Products of many tokens in the default mode: cuBLASLt, with own kernels before it (norm, rounding, whole weights of
// integers) and after it (what it cannot fuse). e4m3 weights are multiplied as they are, by rows rounded to e4m3 too; it
// could scale their sums itself, but has one slow algorithm that does.
#include <cuda_fp8.h>

#include <algorithm>

#include "cublaslt.h"
#include "mma.h"
#include "product_kernels.h"
#include "repack.h"

namespace ingot::cuda {
namespace {

constexpr uint32_t kThreads = 256, kMostThreads = 1024;
constexpr size_t kSliceElements = size_t{64} << 20;  // of weights made whole at once
constexpr uint32_t kSliceRows = 65535;               // at most: of a grid's second dimension

DType operand_of(const Product& p) { return p.dtype == DType::f16 ? DType::f16 : DType::bf16; }
bool in_e4m3(const Product& p) { return p.dtype == DType::e4m3; }
bool quantised(const Product& p) { return p.scales != nullptr; }
bool lines(const Matrix& m) { return m.stride % 16 == 0 && reinterpret_cast<size_t>(m.data) % 16 == 0; }
// x can be an operand as it lies.
bool ready(const Product& p) { return !in_e4m3(p) && !p.norm && p.x.dtype == operand_of(p) && lines(p.x); }
// out = sums (+ residual), which cuBLASLt writes itself.
bool plain(const Product& p) {
  return !in_e4m3(p) && p.branches == 1 && !p.bias && p.activation == Activation::none && p.softcap == 0 &&
         (!p.residual.data || p.out.dtype == DType::f32) && (p.out.dtype == DType::f32 || p.out.dtype == operand_of(p));
}
// f16 sums could overflow; those of e4m3 err by more than bf16 rounds.
DType scratch_type(const Product& p) {
  return in_e4m3(p) || (p.branches == 2 && operand_of(p) == DType::bf16) ? DType::bf16 : DType::f32;
}
uint32_t slice_rows(const Product& p) {
  const uint32_t rows = p.branches * p.n, unit = kTile * p.branches;
  if (!quantised(p)) return rows;
  const uint32_t fit = std::min(uint32_t(kSliceElements / round_up(p.k, kPadK)), kSliceRows) / unit * unit;
  return fit < unit ? unit : fit < rows ? fit : rows;
}

// Where the parts of the workspace start.
struct Parts {
  size_t rows, scales, weights, sums, end;
};
Parts parts_of(const Product& p) {
  const auto pages = [](size_t bytes) { return (bytes + 255) / 256 * 256; };
  const size_t k = round_up(p.k, kPadK);
  Parts parts{};
  parts.rows = kCounterBytes + kCublasWorkspace;
  parts.scales = parts.rows + (ready(p) ? 0 : pages(p.tokens() * k * (in_e4m3(p) ? 1 : 2)));
  parts.weights = parts.scales + (in_e4m3(p) ? pages(size_t{p.tokens()} * sizeof(float)) : 0);
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

// Fours of a row that a thread keeps: of 16,384 elements, all.
constexpr uint32_t kKept = 4;

// A block a row: x, normalised where there is a norm, rounded to e4m3 with its largest magnitude at 448 and zeros up to a
// multiple of 32; and what it is to be scaled by.
__global__ __launch_bounds__(kMostThreads) void round_rows_e4m3(const Product p, uint8_t* to, float* scales) {
  __shared__ float squares[kMostThreads / 32], largest[kMostThreads / 32];
  let_next_start();
  wait_for_inputs();
  const uint32_t token = blockIdx.x, end = round_up(p.k, kPadK);
  const uint32_t warps = blockDim.x / 32, span = blockDim.x * 4 * kKept;
  const bool wide = p.k % 4 == 0 && p.x.stride % 16 == 0 && reinterpret_cast<size_t>(p.x.data) % 16 == 0;
  float sum = 0, most = 0, v[kKept][4];
  const auto column = [&](uint32_t base, uint32_t i) { return base + (i * blockDim.x + threadIdx.x) * 4; };
  const auto load = [&](uint32_t base, bool first) {
#pragma unroll
    for (uint32_t i = 0; i < kKept; ++i) load_four(p.x, token, column(base, i), p.k, wide, v[i]);
#pragma unroll
    for (uint32_t i = 0; i < kKept; ++i) {
      float norm[4];
      load_norm(p, column(base, i), norm);
      for (uint32_t j = 0; j < 4; ++j) {
        if (first) sum = fmaf(v[i][j], v[i][j], sum);
        v[i][j] *= norm[j];
        if (first) most = fmaxf(most, fabsf(v[i][j]));
      }
    }
  };
  for (uint32_t base = 0; base < end; base += span) load(base, true);
  sum = warp_sum(sum), most = warp_max(most);
  if (threadIdx.x % 32 == 0) squares[threadIdx.x / 32] = sum, largest[threadIdx.x / 32] = most;
  __syncthreads();
  const float factor = inverse_rms(p, squares, warps);
  for (uint32_t i = 0; i < warps; ++i) most = fmaxf(most, largest[i]);
  most = fmaxf(most * factor, 0x1p-100f);  // rows of zeros stay zeros
  if (threadIdx.x == 0) scales[token] = most / kMostE4m3;
  const float inverse = kMostE4m3 / most;
  for (uint32_t base = 0; base < end; base += span) {
    if (end > span) load(base, false);
#pragma unroll
    for (uint32_t i = 0; i < kKept; ++i) {
      const uint32_t c = column(base, i);
      uint32_t four = 0;
      for (uint32_t j = 0; j < 4; ++j) {
        const float y = v[i][j] * factor * inverse;
        four |= uint32_t(__nv_cvt_float_to_fp8(y, __NV_SATFINITE, __NV_E4M3)) << 8 * e4m3_place(j);
      }
      if (c < end) *reinterpret_cast<uint32_t*>(to + size_t{token} * end + c) = four;
    }
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

// Eight floats from `from` on, which is a multiple of 16 bytes if `wide`.
__device__ void load_floats(const float* from, bool wide, uint32_t count, float (&v)[8]) {
  if (wide && count >= 8) {
    const float4 a = *reinterpret_cast<const float4*>(from), b = *reinterpret_cast<const float4*>(from + 4);
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
  } else {
    for (uint32_t j = 0; j < 8; ++j) v[j] = j < count ? from[j] : 0;
  }
}

// What sums of e4m3 are to be multiplied by: those of a token, and those of a weight row.
struct Scales { const float *tokens, *rows; };

// out from sums (tokens, rows of the slice), eight a thread; outputs begin at `first` columns. kActivation: the one, known
// so that the code of all others does not lie between eight of it; -1: any.
template <int kActivation>
__global__ __launch_bounds__(kThreads) void finish_sums(const Product product, Matrix sums, Scales scales,
                                                        uint32_t first, uint32_t columns) {
  let_next_start();
  Product p = product;
  p.row_scales = nullptr;
  if constexpr (kActivation >= 0) p.activation = Activation(kActivation);
  const uint32_t i = (blockIdx.x * kThreads + threadIdx.x) * 8, token = blockIdx.y;
  const uint32_t r = p.branches == 2 ? i + i / kTile * kTile : i;
  float scale[8], other_scale[8] = {};
  if (scales.rows && i < columns) {
    load_floats(scales.rows + r, true, columns - i, scale);
    if (p.branches == 2) load_floats(scales.rows + r + kTile, true, 8, other_scale);
  }
  wait_for_inputs();
  if (i >= columns) return;
  float sum[8], other[8] = {}, residual[8] = {}, y[8];
  load_eight(sums, token, r, sum);
  if (p.branches == 2) load_eight(sums, token, r + kTile, other);
  if (p.residual.data) {
    const float* from = row_of<const float>(p.residual, token) + first + i;
    load_floats(from, reinterpret_cast<size_t>(from) % 16 == 0, columns - i, residual);
  }
  if (scales.rows) {
    const float of_token = scales.tokens[token];
#pragma unroll
    for (uint32_t j = 0; j < 8; ++j) sum[j] *= of_token * scale[j], other[j] *= of_token * other_scale[j];
  }
#pragma unroll
  for (uint32_t j = 0; j < 8; ++j)
    y[j] = i + j < columns ? finished(p, first + i + j, sum[j], other[j], residual[j]) : 0;
  store_outputs(p.out, token, first + i, first + columns, {y[0], y[1], y[2], y[3]});
  store_outputs(p.out, token, first + i + 4, first + columns, {y[4], y[5], y[6], y[7]});
}

// Rows of x as operands, `leading` elements apart, and what each is to be scaled by, if anything.
struct Rows {
  const void* data;
  size_t leading;
  const float* scales;
};

// One slice of weight rows.
cudaError_t slice(const Context& context, const Product& p, const Parts& parts, const Rows& x, uint32_t first,
                  uint32_t rows) {
  const size_t k = round_up(p.k, kPadK);
  std::byte* work = context.workspace.data;
  const void* weight = p.weight + byte_size(p.dtype, first * k);
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
  const uint32_t depth = in_e4m3(p) ? uint32_t(k) : p.k;
  const DType operand = in_e4m3(p) ? p.dtype : operand_of(p);
  Gemm gemm{rows, p.tokens(), depth, operand, result, weight, x.data, c, sums.data, k, x.leading,
                  (add ? p.residual.stride : sums.stride) / size, sums.stride / size, plain(p) ? p.scale : 1.0f,
                  add ? 1.0f : 0.0f};
  if (context.choice > Choice::blas && context.choice <= Choice::blas_4)
    gemm.algorithm = uint32_t(context.choice) - uint32_t(Choice::blas);
  if (const cudaError_t e = cublaslt_gemm(context, gemm, work + kCounterBytes)) return e;
  if (plain(p)) return cudaSuccess;
  const uint32_t columns = rows / p.branches;
  const Grid grid{{ceil_div(columns, kThreads * 8), p.tokens()}, kThreads};
  const auto finish = p.activation == Activation::none   ? finish_sums<int(Activation::none)>
                      : p.activation == Activation::silu ? finish_sums<int(Activation::silu)>
                                                         : finish_sums<-1>;
  return launch(context, finish, grid, p, sums, Scales{x.scales, p.row_scales}, first / p.branches, columns);
}

// Rows of x as operands: where they lie, or rounded in the workspace.
cudaError_t make_rows(const Context& context, const Product& p, const Parts& parts, Rows& x) {
  x = {p.x.data, p.x.stride / 2, nullptr};
  if (ready(p)) return cudaSuccess;
  std::byte* rows = context.workspace.data + parts.rows;
  auto* scales = reinterpret_cast<float*>(context.workspace.data + parts.scales);
  x = {rows, round_up(p.k, kPadK), in_e4m3(p) ? scales : nullptr};
  if (in_e4m3(p)) {
    const uint32_t threads = p.tokens() <= 2 * uint32_t(context.device.processors) ? kMostThreads : kThreads;
    return launch(context, round_rows_e4m3, {{p.tokens()}, threads}, p, reinterpret_cast<uint8_t*>(rows), scales);
  }
  const auto kernel = operand_of(p) == DType::f16 ? round_rows<true> : round_rows<false>;
  return launch(context, kernel, {{p.tokens()}, kThreads}, p, reinterpret_cast<uint16_t*>(rows));
}

}  // namespace

bool blas_can(const Product& p) {
  const size_t size = byte_size(p.out.dtype, 1);
  const bool aligned = plain(p) ? lines(p.out) && (!p.residual.data || lines(p.residual)) && p.n * size % 16 == 0
                                : p.branches * p.n % 8 == 0;
  const bool shaped = in_e4m3(p) ? p.branches * p.n % 16 == 0 : p.k % 8 == 0;
  return p.dtype != DType::f32 && shaped && aligned && !cublaslt_unavailable();
}

size_t blas_workspace(const Product& p) { return parts_of(p).end; }

cudaError_t product_blas(const Context& context, const Product& p) {
  const Parts parts = parts_of(p);
  const uint32_t all = p.branches * p.n, step = slice_rows(p);
  Rows x;
  if (const cudaError_t e = make_rows(context, p, parts, x)) return e;
  for (uint32_t first = 0; first < all; first += step) {
    const uint32_t rows = all - first < step ? all - first : step;
    if (const cudaError_t e = slice(context, p, parts, x, first, rows)) return e;
  }
  return cudaSuccess;
}

}  // namespace ingot::cuda

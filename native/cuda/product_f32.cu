// Products of f32 weights: a warp an output, lanes along K, fused multiply-adds. Exact rather than fast.
#include "product_kernels.h"

namespace ingot::cuda {
namespace {

constexpr uint32_t kWarps = 8, kTokens = 4;

struct Sums { float of[2][kTokens], squares[kTokens]; };

// Adds the products of weight rows r and r + kTile (of two branches) with rows first .. first + tokens of x.
__device__ Sums sums_of(const Product& p, uint32_t r, uint32_t first, uint32_t tokens) {
  Sums s{};
  const float* weight = reinterpret_cast<const float*>(p.weight) + size_t{r} * round_up(p.k, kPadK);
  const size_t other = p.branches == 2 ? size_t{kTile} * round_up(p.k, kPadK) : 0;
  for (uint32_t c = threadIdx.x % 32; c < p.k; c += 32) {
    const float a = __ldg(weight + c), b = __ldg(weight + other + c);
    const float norm = p.norm ? p.norm_offset + __ldg(p.norm + c) : 1;
    for (uint32_t i = 0; i < kTokens; ++i) {
      if (i >= tokens) break;
      const float x = load_as_float(p.x, first + i, c);
      s.squares[i] = fmaf(x, x, s.squares[i]);
      s.of[0][i] = fmaf(a, x * norm, s.of[0][i]);
      s.of[1][i] = fmaf(b, x * norm, s.of[1][i]);
    }
  }
  return s;
}

__global__ __launch_bounds__(kWarps * 32) void fma_product(const Product p) {
  let_next_start();
  wait_for_inputs();
  const uint32_t column = blockIdx.x * kWarps + threadIdx.x / 32, first = blockIdx.y * kTokens;
  if (column >= p.n) return;
  const uint32_t tokens = min(kTokens, p.tokens() - first);
  const Sums s = sums_of(p, p.branches == 2 ? column + column / kTile * kTile : column, first, tokens);
  for (uint32_t i = 0; i < kTokens; ++i) {
    if (i >= tokens) break;
    const float squares = warp_sum(s.squares[i]), factor = inverse_rms(p, &squares, 1);
    const float sum = warp_sum(s.of[0][i]) * factor, other = warp_sum(s.of[1][i]) * factor;
    if (threadIdx.x % 32 == 0) finish(p, first + i, column, sum, other, residual_of(p, first + i, column));
  }
}

}  // namespace

cudaError_t product_f32(const Context& context, const Product& p) {
  return launch(context, fma_product, {{ceil_div(p.n, kWarps), ceil_div(p.tokens(), kTokens)}, kWarps * 32}, p);
}

}  // namespace ingot::cuda

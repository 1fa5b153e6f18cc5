#include "product.h"

#include <algorithm>

#include "product_kernels.h"

namespace ingot::cuda {
namespace {

constexpr uint32_t kBlasTokens = 32;  // above these the default mode asks cuBLASLt

bool by_blas(const Product& p, uint32_t tokens) { return tokens > kBlasTokens && blas_can(p); }

}  // namespace

cudaError_t product(const Context& context, const Product& p) {
  if (p.tokens() == 0) return cudaSuccess;
  if (p.dtype == DType::f32) return product_f32(context, p);
  if (!context.shape.deterministic && by_blas(p, p.tokens())) return product_blas(context, p);
  return product_stream(context, p);
}

size_t product_workspace(const Device&, const Product& p) { return by_blas(p, p.tokens()) ? blas_workspace(p) : 0; }

}  // namespace ingot::cuda

#include "product.h"

#include <algorithm>
#include <cstdlib>

#include "product_kernels.h"

namespace ingot::cuda {
namespace {

constexpr uint32_t kStreamed = 8;  // up to these, weights are streamed
const uint32_t kTiled = getenv("TILED") ? atoi(getenv("TILED")) : 8;   // above these, the default mode asks cuBLASLt

}  // namespace

cudaError_t product(const Context& context, const Product& p) {
  if (p.tokens() == 0) return cudaSuccess;
  if (p.dtype == DType::f32) return product_f32(context, p);
  if (!context.shape.deterministic && p.tokens() > kTiled && blas_can(p)) return product_blas(context, p);
  if (p.tokens() > kStreamed && tile_can(context.device, p)) return product_tile(context, p);
  return product_stream(context, p);
}

size_t product_workspace(const Device& device, const Product& p) {
  size_t bytes = 0;
  if (p.tokens() > kTiled && blas_can(p)) bytes = blas_workspace(p);
  if (p.tokens() > kStreamed && tile_can(device, p)) bytes = std::max(bytes, tile_workspace(p));
  return bytes;
}

}  // namespace ingot::cuda

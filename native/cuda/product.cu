#include "product.h"

#include "product_kernels.h"

namespace ingot::cuda {

cudaError_t product(const Context& context, const Product& p) {
  if (p.tokens() == 0) return cudaSuccess;
  if (p.dtype == DType::f32) return product_f32(context, p);
  return product_stream(context, p);
}

size_t product_workspace(const Device&, const Product&) { return 0; }

}  // namespace ingot::cuda

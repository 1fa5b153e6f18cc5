#include "product.h"

#include <algorithm>

#include "product_kernels.h"

namespace ingot::cuda {
namespace {

constexpr uint32_t kStreamed = 8;  // up to these rows, weights are streamed

enum class Way { fma, stream, tile, blas };

// The stream where one pass over the weights is enough; beyond, cuBLASLt in the default mode, and the tile kernel,
// whose bits are those of the stream, in the deterministic mode.
Way way_of(const Device& device, const Product& p, bool deterministic) {
  if (p.dtype == DType::f32) return Way::fma;
  if (p.tokens() <= kStreamed && stream_passes(device, p) == 1) return Way::stream;
  if (!deterministic && blas_can(p)) return Way::blas;
  return tile_can(device, p) ? Way::tile : Way::stream;
}

}  // namespace

cudaError_t product(const Context& context, const Product& p) {
  if (p.tokens() == 0) return cudaSuccess;
  switch (way_of(context.device, p, context.shape.deterministic)) {
    case Way::fma: return product_f32(context, p);
    case Way::stream: return product_stream(context, p);
    case Way::tile: return product_tile(context, p);
    case Way::blas: {
      const cudaError_t error = product_blas(context, p);
      if (error != cudaErrorNotSupported) return error;
      return tile_can(context.device, p) ? product_tile(context, p) : product_stream(context, p);
    }
  }
  return cudaErrorInvalidValue;
}

// Both modes may ask for up to p's rows.
size_t product_workspace(const Device& device, const Product& p) {
  size_t bytes = 0;
  if (way_of(device, p, true) == Way::tile) bytes = tile_workspace(p);
  if (way_of(device, p, false) == Way::blas) bytes = std::max(bytes, blas_workspace(p));
  return bytes;
}

size_t product_shared(const Product& p) { return p.dtype == DType::f32 ? 0 : stream_shared(p); }

}  // namespace ingot::cuda

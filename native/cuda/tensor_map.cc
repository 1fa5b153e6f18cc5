#include "tensor_map.h"

namespace ingot::cuda {
namespace {

// The driver's, found at run time: nothing links to it.
decltype(&cuTensorMapEncodeTiled) encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found) !=
          cudaSuccess ||
      found != cudaDriverEntryPointSuccess)
    return nullptr;
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

template <uint32_t kDimensions>
cudaError_t encode(CUtensorMap& map, const Tensor<kDimensions>& tensor) {
  static const auto encode = encoder();
  if (!encode) return cudaErrorNotSupported;
  cuuint32_t steps[kDimensions];
  for (cuuint32_t& step : steps) step = 1;
  const CUresult result =
      encode(&map, tensor.type, kDimensions, const_cast<void*>(tensor.base), tensor.sizes, tensor.strides, tensor.box,
             steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, tensor.promotion,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace

cudaError_t map_tensor(CUtensorMap& map, const Tensor<2>& tensor) { return encode(map, tensor); }
cudaError_t map_tensor(CUtensorMap& map, const Tensor<3>& tensor) { return encode(map, tensor); }

cudaError_t map_rows(CUtensorMap& map, const void* base, size_t row_bytes, uint32_t rows, uint32_t box_rows) {
  return map_tensor(map, Tensor<2>{CU_TENSOR_MAP_DATA_TYPE_UINT8, base, {row_bytes, rows}, {row_bytes},
                                   {kBoxBytes, box_rows}, CU_TENSOR_MAP_L2_PROMOTION_L2_256B});
}

}  // namespace ingot::cuda

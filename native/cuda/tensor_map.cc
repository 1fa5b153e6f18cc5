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

}  // namespace

cudaError_t map_rows(CUtensorMap& map, const void* base, size_t row_bytes, uint32_t rows, uint32_t box_rows) {
  static const auto encode = encoder();
  if (!encode) return cudaErrorNotSupported;
  const cuuint64_t sizes[] = {row_bytes, rows}, strides[] = {row_bytes};
  const cuuint32_t box[] = {kBoxBytes, box_rows}, steps[] = {1, 1};
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<void*>(base), sizes, strides, box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace ingot::cuda

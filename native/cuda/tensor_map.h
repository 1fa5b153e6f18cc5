// Maps that Hopper's copies of boxes read by.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace ingot::cuda {

constexpr uint32_t kBoxBytes = 128;  // of a row

// A tensor at `base`, dimensions innermost first; strides, in bytes, are those of all but the innermost.
template <uint32_t kDimensions>
struct Tensor {
  CUtensorMapDataType type;
  const void* base;
  cuuint64_t sizes[kDimensions], strides[kDimensions - 1];
  cuuint32_t box[kDimensions];
  CUtensorMapL2promotion promotion;
};

// Maps it for copies of boxes whose innermost extent is kBoxBytes, swizzled as hopper.h has operands; what lies outside is
// zeros. cudaErrorNotSupported where the driver has no such maps.
cudaError_t map_tensor(CUtensorMap& map, const Tensor<2>& tensor);
cudaError_t map_tensor(CUtensorMap& map, const Tensor<3>& tensor);

// `rows` rows of `row_bytes`, a multiple of 16, at `base`, in boxes of `box_rows` rows.
cudaError_t map_rows(CUtensorMap& map, const void* base, size_t row_bytes, uint32_t rows, uint32_t box_rows);

}  // namespace ingot::cuda

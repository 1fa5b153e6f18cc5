// Maps that Hopper's copies of boxes read by.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace ingot::cuda {

constexpr uint32_t kBoxBytes = 128;  // of a row

// `rows` rows of `row_bytes`, a multiple of 16, at `base`, read in boxes of kBoxBytes of `box_rows` rows, swizzled as
// hopper.h has operands. cudaErrorNotSupported where the driver has no such maps.
cudaError_t map_rows(CUtensorMap& map, const void* base, size_t row_bytes, uint32_t rows, uint32_t box_rows);

}  // namespace ingot::cuda

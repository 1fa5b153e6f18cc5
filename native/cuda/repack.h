// Weights from the plan's layouts to what kernels of this backend read: row-major, columns of matrices padded with zeros
// to a multiple of 32, rows to 16.
#pragma once
#include <cuda_runtime.h>

#include "../core/kernel.h"

namespace ingot::cuda {

inline constexpr uint32_t kColumnPadding = 32, kRowPadding = 16;

inline uint64_t round_up(uint64_t value, uint64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Elements from one row to the next on the device. Scales and sub-scales (`exact`) have no padding columns.
inline uint32_t leading_dimension(uint32_t cols, bool exact) {
  return exact ? cols : uint32_t(round_up(cols, kColumnPadding));
}

// Which byte of its four holds the e4m3 of column c: two lie in the high bytes of the word's halves, two in the low ones,
// as mma.h takes pairs out of it.
__host__ __device__ constexpr uint32_t e4m3_place(uint32_t c) { return 0x2031u >> (c % 4 * 4) & 3; }

// Bytes that a tiled weight takes on the device.
inline uint64_t repacked_bytes(const Weight& weight, bool exact) {
  return byte_size(weight.dtype, round_up(weight.rows, kRowPadding) * leading_dimension(weight.cols, exact));
}

// Writes rows [first_row, first_row + rows) of `weight` to `to`, its start on the device. `from` holds the tiles of those
// rows; first_row is a multiple of 16. Rows beyond the weight's own become zero.
cudaError_t repack(const Weight& weight, bool exact, const std::byte* from, uint32_t first_row, uint32_t rows,
                   std::byte* to, cudaStream_t stream);

}  // namespace ingot::cuda

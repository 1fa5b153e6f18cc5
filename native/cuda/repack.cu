#include "repack.h"

namespace ingot::cuda {
namespace {

struct Tiles {
  uint32_t first_row, rows, weight_rows, cols, padded_cols, pack, leading;
};

// Index of the element (row of these tiles, col): a tile is [cols / pack][16][pack].
__device__ size_t tiled_index(const Tiles& t, uint32_t row, uint32_t col) {
  return size_t(row / 16) * 16 * t.padded_cols + size_t(col / t.pack * 16 + row % 16) * t.pack + col % t.pack;
}

// `fours`: in the order of e4m3_place.
template <class Element>
__global__ void untile(Tiles t, bool fours, const Element* from, Element* to) {
  const uint32_t row = blockIdx.y;
  const bool stored = t.first_row + row < t.weight_rows;
  for (uint32_t col = blockIdx.x * blockDim.x + threadIdx.x; col < t.leading; col += gridDim.x * blockDim.x)
    to[(size_t(t.first_row) + row) * t.leading + (fours ? col / 4 * 4 + e4m3_place(col) : col)] =
        stored && col < t.cols ? from[tiled_index(t, row, col)] : Element(0);
}

// Eight int4 are four bytes that hold element i low and i + 4 high; on the device two neighbours share a byte.
__global__ void untile_int4(Tiles t, const uint8_t* from, uint8_t* to) {
  const uint32_t row = blockIdx.y;
  const bool stored = t.first_row + row < t.weight_rows;
  const auto nibble = [&](uint32_t col) -> uint32_t {
    if (!stored || col >= t.cols) return 0;
    const size_t index = tiled_index(t, row, col);
    return (from[index / 8 * 4 + index % 4] >> (index & 4 ? 4 : 0)) & 15u;
  };
  for (uint32_t pair = blockIdx.x * blockDim.x + threadIdx.x; pair < t.leading / 2; pair += gridDim.x * blockDim.x)
    to[(size_t(t.first_row) + row) * (t.leading / 2) + pair] = uint8_t(nibble(2 * pair) | nibble(2 * pair + 1) << 4);
}

}  // namespace

cudaError_t repack(const Weight& weight, bool exact, const std::byte* from, uint32_t first_row, uint32_t rows,
                   std::byte* to, cudaStream_t stream) {
  const LayoutDef& layout = kLayouts[size_t(weight.layout)];
  const uint32_t leading = leading_dimension(weight.cols, exact);
  const Tiles tiles{first_row, rows,    weight.rows, weight.cols, uint32_t(round_up(weight.cols, layout.align)),
                    layout.pack, leading};
  const dim3 blocks((leading + 255) / 256, rows);
  const auto as = [&](auto zero) {
    using Element = decltype(zero);
    untile<<<blocks, 256, 0, stream>>>(tiles, weight.dtype == DType::e4m3, reinterpret_cast<const Element*>(from),
                                       reinterpret_cast<Element*>(to));
  };
  switch (dtype_bits(weight.dtype)) {
    case 32: as(uint32_t{}); break;
    case 16: as(uint16_t{}); break;
    case 8: as(uint8_t{}); break;
    default: untile_int4<<<blocks, 256, 0, stream>>>(tiles, reinterpret_cast<const uint8_t*>(from),
                                                     reinterpret_cast<uint8_t*>(to));
  }
  return cudaGetLastError();
}

}  // namespace ingot::cuda

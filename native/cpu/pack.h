// Rows of a checkpoint as the tiles that a package stores (abi/layouts.ts): transposed as they are, or quantised. Bit for bit
// what models/compile/{tiles,integers,e4m3}.ts say, which argue for the numbers.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "../gen/abi.h"

namespace ingot::cpu {

inline constexpr size_t kTileRows = 16;

enum class PackFormat : uint8_t { plain, q8, q4, fp8 };

struct Packing {
  PackFormat format;
  DType from;      // of the rows; f32, f16 or bf16 where they are quantised
  DType to;        // of the tiles; that of the rows where they are plain
  Layout layout;   // of the tiles
  size_t cols;     // elements of a row

  size_t row_bytes() const { return size_t(byte_size(from, cols)); }
  size_t padded_cols() const {
    const size_t align = kLayouts[size_t(layout)].align;
    return (cols + align - 1) / align * align;
  }
  size_t tile_bytes() const { return kTileRows * size_t(byte_size(to, padded_cols())); }
  // Of a row: f16 of each 256 elements of q8 and q4, one f32 of fp8; int8 of each 32 of q4.
  size_t scale_bytes() const;
  size_t sub_scale_bytes() const { return format == PackFormat::q4 ? (cols + kQuantGroup - 1) / kQuantGroup : 0; }
};

// Packs the rows of one tile, nullptr past the last, and writes what scales them, row after row. Returns the first row that
// holds what the format cannot, kTileRows when none does.
using PackTile = size_t (*)(const Packing&, std::span<const std::byte* const, kTileRows> rows, std::byte* tile,
                            std::byte* scales, std::byte* sub_scales);

inline constexpr size_t kNoRow = SIZE_MAX;

// Packs rows on `threads` threads of its own, the caller's among them: those of the shared pool belong to steps, which must
// not wait, and flush subnormals, which changes bits. Returns the first row that is refused, or kNoRow.
size_t pack_rows(const Packing& packing, std::span<const std::byte* const> rows, std::byte* tiles, std::byte* scales,
                 std::byte* sub_scales, unsigned threads, PackTile pack_tile);

}  // namespace ingot::cpu

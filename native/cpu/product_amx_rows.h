// Rows of x as AMX tiles: what the products of product_amx.cc read.
#pragma once
#include <algorithm>

#include "prefetch.h"
#include "product.h"
#include "quantize.h"
#include "tiles.h"

namespace ingot::cpu::INGOT_ISA {

// A tile along K is a *step*: 32 bf16. `pack` takes up to kQuantBlock elements of a row, from a multiple of kUnit on; its
// steps lie a tile apart.
// Many rows pass a piece of the weights of two output tiles at a time, as much as stays in L1: 32 KB; kPassRows of them,
// whose piece stays in L2 beside their sums while a panel passes.
struct Bf16Tiles {
  static constexpr size_t kStep = 32, kPieceSteps = 16, kUnit = kStep, kPassRows = 256;
  static void pack(const float* from, size_t count, std::byte* to, size_t tile_bytes) {
    for (size_t k = 0; k < round_up(count, kStep); k += kLanes) {
      const size_t left = k < count ? count - k : 0;
      const Vec v = left ? load_n(from + k, left < kLanes ? left : kLanes) : zero();
      store_bf16(reinterpret_cast<uint16_t*>(to + k / kStep * tile_bytes) + k % kStep, v);
    }
  }
};

// Steps of 64 int8, scaled by block: `pack` returns the scale. 24 KB of weights leave room for sums to be scaled.
struct Int8Tiles {
  static constexpr size_t kStep = 64, kPieceSteps = 12, kUnit = kQuantBlock, kPassRows = 512;
  static float pack(const float* from, size_t count, std::byte* to, size_t tile_bytes) {
    if (count % kStep) std::memset(to + count / kStep * tile_bytes, 0, kStep);
    return quantize_block(from, count, [&](size_t k, Ints q) {
      store_i8(reinterpret_cast<int8_t*>(to + k / kStep * tile_bytes) + k % kStep, q);
    });
  }
};

// x as tiles: (piece, row tile, step of the piece); K is padded with zeros, and so are more rows than one tile has. A piece
// is whole blocks along K and lies together: rows a power of two apart would fall on the same sets of L2. Scales of
// integers: (block, row).
struct PackedRows {
  size_t height, rows;  // of a tile; padded to 16, as scales are
  size_t steps, blocks, piece_steps;
  std::byte* tiles = nullptr;
  float* scales = nullptr;

  template <class Tiles>
  static PackedRows of(size_t rows, size_t width, size_t piece_steps) {
    return {std::min(rows, kTileHeight), round_up(rows, kTileHeight), ceil_div(width, Tiles::kStep),
            ceil_div(width, kQuantBlock), piece_steps};
  }
  // The same in memory of bytes().
  PackedRows in(std::byte* memory) const {
    return {height, rows, steps, blocks, piece_steps, memory, reinterpret_cast<float*>(memory + all_tile_bytes())};
  }
  size_t tile_bytes() const { return height * kTileRowBytes; }
  size_t bytes() const { return all_tile_bytes() + rows * blocks * sizeof(float); }
  size_t all_tile_bytes() const { return rows * round_up(steps, piece_steps) * kTileRowBytes; }

  std::byte* at(size_t row, size_t step) const {
    const size_t piece = step / piece_steps, tile = (piece * (rows / kTileHeight) + row / kTileHeight) * piece_steps;
    return tiles + (tile + step % piece_steps) * tile_bytes() + row % kTileHeight * kTileRowBytes;
  }
  // Packs elements of a row from column k, a multiple of Tiles::kUnit, on.
  template <class Tiles>
  void pack(size_t row, size_t k, const float* from, size_t count) const {
    std::byte* to = at(row, k / Tiles::kStep);
    [[maybe_unused]] float& scale = scales[k / kQuantBlock * rows + row];
    if constexpr (Tiles::kUnit == kQuantBlock) scale = Tiles::pack(from, count, to, tile_bytes());
    else Tiles::pack(from, count, to, tile_bytes());
  }
};

// Packs one block along K of the rows of a tile from `first` on, normalised by their factors; prefetches the next.
template <class Tiles>
void pack_block(const Input& x, const PackedRows& p, size_t first, size_t block, const float* factors) {
  const size_t begin = block * kQuantBlock, left = x.width - begin, count = left < kQuantBlock ? left : kQuantBlock;
  float normalized[kQuantBlock];
  for (size_t row = first; row < first + p.height; ++row) {
    if (row >= x.rows) {
      std::byte* to = p.at(row, begin / Tiles::kStep);
      for (size_t k = 0; k < count; k += Tiles::kStep) std::memset(to + k / Tiles::kStep * p.tile_bytes(), 0, kTileRowBytes);
      p.scales[block * p.rows + row] = 0;
      continue;
    }
    const float* from = x.row<float>(row) + begin;
    for (size_t k = 0; k < count; k += kLanes) prefetch<kIntoL1>(from + kQuantBlock + k);
    if (x.norm) {
      rms_scale(from, x.norm + begin, normalized, count, factors[row - first], x.offset);
      from = normalized;
    }
    p.pack<Tiles>(row, begin, from, count);
  }
}

// Block by block of 16 rows, so that whole tiles are written.
template <class Tiles>
PackedRows pack_rows(const Context& context, const Input& x, size_t piece_steps) {
  const PackedRows rows = PackedRows::of<Tiles>(x.rows, x.width, piece_steps);
  const PackedRows p = rows.in(context.scratch.take<std::byte>(rows.bytes()));
  const size_t grain = ceil_div(kForkElements, p.height * kQuantBlock);
  context.pool.parallel(p.rows / kTileHeight * p.blocks, grain, [&](size_t begin, size_t end) {
    float factors[kTileHeight] = {};
    for (size_t unit = begin; unit < end; ++unit) {
      const size_t first = unit / p.blocks * kTileHeight, block = unit % p.blocks;
      if (x.norm && (unit == begin || block == 0)) {
        for (size_t r = 0; r < kTileHeight && first + r < x.rows; ++r) {
          factors[r] = rms_factor(x.row<float>(first + r), x.width, x.eps);
        }
      }
      pack_block<Tiles>(x, p, first, block, factors);
    }
  });
  return p;
}

}  // namespace ingot::cpu::INGOT_ISA

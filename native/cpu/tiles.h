// AMX tiles as every kernel here uses them: eight of 16 rows of 64 bytes.
#pragma once
#include <algorithm>
#include <array>

#include "simd.h"

#if defined(INGOT_ISA_amx)

namespace ingot::cpu::INGOT_ISA {

inline constexpr size_t kTileHeight = kLanes, kTileRowBytes = 64, kTileBytes = kTileHeight * kTileRowBytes;

// Palette 1. Static: the compiler does not see that the instruction reads it.
struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
// Of a product of up to 16 rows, by their number less one: sums and rows of x are no higher, weights (6 and 7) are full.
alignas(64) inline constexpr auto kTileConfigs = [] {
  std::array<TileConfig, kTileHeight> configs;
  for (size_t last = 0; last < kTileHeight; ++last)
    for (size_t tile = 0; tile < 6; ++tile) configs[last].rows[tile] = uint8_t(last + 1);
  return configs;
}();

// The calling thread's tiles, while this lives: as high as was said last.
class TileLease {
 public:
  TileLease() = default;
  TileLease(const TileLease&) = delete;
  TileLease& operator=(const TileLease&) = delete;
  ~TileLease() {
    if (rows_) _tile_release();
  }
  // Of up to `rows` rows at once, at least 1. Tiles hold nothing after a change.
  void set_rows(size_t rows) {
    rows = std::min(rows, kTileHeight);
    if (rows == rows_) return;
    _tile_loadconfig(&kTileConfigs[rows - 1]);
    rows_ = rows;
  }

 private:
  size_t rows_ = 0;
};

}  // namespace ingot::cpu::INGOT_ISA

#endif

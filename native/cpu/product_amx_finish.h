// From the sums of a panel to its outputs: rows, or the tiles that their reader multiplies.
#pragma once
#include "product_amx_steps.h"

namespace ingot::cpu::INGOT_ISA {

// Output tiles of a panel, in each branch: as many as int8 that are left as tiles share a scale.
inline constexpr size_t kPanelTiles = kQuantBlock / kLanes;

// Where rows are left as the tiles that their reader multiplies: in the memory of a register.
template <class Tiles>
PackedRows left_in(const Matrix& m) {
  return PackedRows::of<Tiles>(m.rows, m.width, Tiles::kPieceSteps).in(m.data);
}

// Sums of a panel over a pass of rows, complete: [pair of output tiles][block of rows].
struct PanelSums {
  TileSums<float>* sums;
  Range tiles, rows;

  // Floats from a pair of tiles to the next, and from the first tile of a pair to the second.
  size_t stride() const { return ceil_div(rows.end - rows.begin, kBlockRows) * (sizeof *sums / sizeof(float)); }
  static constexpr size_t kSecond = kTileHeight * kLanes;
  // Of a row, where the sums of the first tile are.
  float* at(size_t row) const {
    const size_t r = row - rows.begin;
    return sums[r / kBlockRows][r % kBlockRows / kTileHeight][0] + r % kTileHeight * kLanes;
  }
};

// Makes the outputs of some rows, of which nothing is capped; those of a row go to `to`, `stride` bytes after the row's
// before.
template <Activation kActivation, size_t kBranches>
void finish_rows(const Epilogue& epilogue, const PanelSums& panel, size_t width, Range rows, float* to, size_t stride) {
  const Epilogue e = epilogue;  // copies: what they say stays in registers
  const PanelSums p = panel;
  const size_t pair = p.stride();
  for (size_t row = rows.begin; row < rows.end; ++row) {
    const float* const sums = p.at(row);
    for (size_t tile = p.tiles.begin, i = 0; tile < p.tiles.end; tile += kBranches, ++i) {
      const size_t column = tile / kBranches * kLanes, n = std::min(width - column, kLanes);
      const float* const sum = kBranches == 2 ? sums + i * pair : sums + i / 2 * pair + i % 2 * p.kSecond;
      Vec y = activate<kActivation>(before_cap(e, tile, n, load(sum)));
      if constexpr (kBranches == 2) y = y * before_cap(e, tile + 1, n, load(sum + p.kSecond));
      store_n(to + i * kLanes, add_residual(e, row, column, n, y), n);
    }
    to = reinterpret_cast<float*>(reinterpret_cast<std::byte*>(to) + stride);
  }
}

// Caps sums where they are, and says what is left to do.
inline Epilogue cap_sums(Epilogue e, const Matrix& out, const PanelSums& panel) {
  for (size_t row = panel.rows.begin; row < panel.rows.end; ++row) {
    for (size_t tile = panel.tiles.begin; tile < panel.tiles.end; ++tile) {
      const size_t t = tile - panel.tiles.begin;
      float* const sum = panel.at(row) + t / 2 * panel.stride() + t % 2 * panel.kSecond;
      store(sum, before_activation(e, tile, lanes_at(out, tile / e.branches * kLanes), load(sum)));
    }
  }
  e.bias = nullptr, e.scale = 1, e.softcap = 0;
  return e;
}

// Makes outputs of the sums of a panel.
template <class Tiles>
void finish_panel(const Epilogue& epilogue, const Matrix& out, const PanelSums& panel) {
  const Epilogue e = epilogue.softcap > 0 ? cap_sums(epilogue, out, panel) : epilogue;
  const auto finish = with_activation(e.activation, [&]<Activation kActivation>() {
    return e.branches == 2 ? finish_rows<kActivation, 2> : finish_rows<kActivation, 1>;
  });
  const Range rows = panel.rows;
  const size_t first = panel.tiles.begin / e.branches * kLanes;
  if (!e.tiles) return finish(e, panel, out.width, rows, out.row<float>(rows.begin) + first, out.stride);
  const PackedRows left = left_in<Tiles>(out);
  const size_t end = std::min<size_t>(panel.tiles.end / e.branches * kLanes, out.width);
  for (size_t row = rows.begin; row < rows.end; ++row) {
    alignas(64) float y[kPanelTiles * kLanes];
    finish(e, panel, out.width, {row, row + 1}, y, 0);
    // Whole units, as a panel begins with one and has as many as it takes.
    for (size_t k = first; k < end; k += Tiles::kUnit)
      left.pack<Tiles>(row, k, y + (k - first), std::min(Tiles::kUnit, end - k));
  }
}

}  // namespace ingot::cpu::INGOT_ISA

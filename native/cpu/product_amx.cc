// bf16 products on AMX tiles, in blocks of up to 32 rows by 32 outputs. A weight tile of 32 k is read as it lies.
#include "product_amx.h"

#if defined(INGOT_ISA_amx)

namespace ingot::cpu::INGOT_ISA {
namespace {

// Palette 1, eight tiles of 16 rows of 64 bytes. Static: the compiler does not see that the instruction reads it.
struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
alignas(64) constexpr TileConfig kTiles;

// Sums of R x T tiles over all of k: sums[r][t] is 16 rows of 16 outputs. Tiles 0-3 hold sums, 4-5 rows, 6-7 weights.
template <int R, int T>
void tile_block(const uint16_t* x, const uint16_t* weight, size_t k, float (&sums)[2][2][kLanes * kLanes]) {
  asm volatile("" ::: "memory");  // the loads below do not say that they read
  _tile_zero(0);
  if constexpr (T > 1) _tile_zero(1);
  if constexpr (R > 1) _tile_zero(2);
  if constexpr (R > 1 && T > 1) _tile_zero(3);
  for (size_t k0 = 0; k0 < k; k0 += 32) {
    _tile_loadd(4, x + k0, k * 2);
    _tile_loadd(6, weight + k0 * kLanes, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (T > 1) {
      _tile_loadd(7, weight + (k + k0) * kLanes, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (R > 1) {
      _tile_loadd(5, x + kLanes * k + k0, k * 2);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (T > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums[0][0], 64);
  if constexpr (T > 1) _tile_stored(1, sums[0][1], 64);
  if constexpr (R > 1) _tile_stored(2, sums[1][0], 64);
  if constexpr (R > 1 && T > 1) _tile_stored(3, sums[1][1], 64);
}

// x as rows of k bf16, the rows padded to whole tiles with zeros.
const uint16_t* pack_rows(const Context& context, const Matrix& x, size_t k) {
  const size_t rows = round_up(x.rows, kLanes);
  uint16_t* packed = context.scratch.take<uint16_t>(rows * k);
  each_row(context, rows, k, [&](size_t r) {
    for (size_t c = 0; c < k; c += kLanes) {
      const size_t left = r < x.rows && c < x.width ? x.width - c : 0;
      const Vec v = left ? load_n(x.row<float>(r) + c, left < kLanes ? left : kLanes) : zero();
      store_bf16(packed + r * k + c, v);
    }
  });
  return packed;
}

}  // namespace

void amx_product(const Context& context, const Matrix& x, const Weight& weight, const Epilogue& epilogue,
                 const Matrix& out) {
  const size_t k = round_up(x.width, 32);
  const uint16_t *packed = pack_rows(context, x, k), *w = weight.as<uint16_t>();
  const auto piece = [&](Range tiles, Range rows) {
    _tile_loadconfig(&kTiles);
    for (size_t t = tiles.begin; t < tiles.end; t += 2) {
      for (size_t row = rows.begin; row < rows.end; row += 2 * kLanes) {
        alignas(64) float sums[2][2][kLanes * kLanes];
        const bool two_tiles = tiles.end - t > 1, two_rows = rows.end - row > kLanes;
        const auto block = two_rows ? (two_tiles ? tile_block<2, 2> : tile_block<2, 1>)
                                    : (two_tiles ? tile_block<1, 2> : tile_block<1, 1>);
        block(packed + row * k, w + t * kLanes * k, k, sums);
        for (size_t r = row; r < rows.end && r < row + 2 * kLanes; ++r) {
          const float* sum = sums[(r - row) / kLanes][0] + (r - row) % kLanes * kLanes;
          finish(epilogue, out, r, t, load(sum));
          if (two_tiles) finish(epilogue, out, r, t + 1, load(sum + kLanes * kLanes));
        }
      }
    }
    _tile_release();
  };
  split(context, ceil_div(out.width, kLanes), x.rows, 2 * kLanes, x.rows * k * out.width, piece);
}

}  // namespace ingot::cpu::INGOT_ISA

#endif

// AMX tiles in software, as the Intel SDM defines the instructions: included before the kernels of instruction set
// `amx`, it makes them an instruction set that a machine without tiles can test.
#pragma once
// GCC 12 warns of its own deliberately undefined registers.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace ingot::test {

struct Tiles {
  // What LDTILECFG reads.
  struct Config { uint8_t palette, start_row, reserved[14]; uint16_t row_bytes[16]; uint8_t rows[16]; };
  Config config = {};
  uint8_t bytes[8][16][64] = {};

  void configure(const void* from) {
    std::memcpy(&config, from, sizeof config);
    for (int tile = 0; tile < 8; ++tile)
      if (config.rows[tile] > 16 || config.row_bytes[tile] > 64) std::abort();  // the instruction faults
    std::memset(bytes, 0, sizeof bytes);
  }
  void release() { config = {}; }
  void zero(int tile) { used(tile), std::memset(bytes[tile], 0, sizeof bytes[tile]); }
  void load(int tile, const void* from, size_t stride) {
    zero(tile);
    for (size_t r = 0; r < config.rows[tile]; ++r)
      std::memcpy(bytes[tile][r], static_cast<const char*>(from) + r * stride, config.row_bytes[tile]);
  }
  void store(int tile, void* to, size_t stride) const {
    used(tile);
    for (size_t r = 0; r < config.rows[tile]; ++r)
      std::memcpy(static_cast<char*>(to) + r * stride, bytes[tile][r], config.row_bytes[tile]);
  }

  // Of products, which touch tiles alone, no larger than configure() lets them be: no sanitizer, whose checks take most
  // of their time, and optimised also where kernels are not.
#define INGOT_WITHIN_TILES [[gnu::no_sanitize("address", "undefined"), gnu::optimize("O3")]]
  INGOT_WITHIN_TILES void multiply_bf16(int c, int a, int b) {
    check(c, a, b);
    float x[2][16][16], y[2][16][16];
    widen(a, x);
    widen(b, y);
    for (size_t m = 0; m < config.rows[c]; ++m) {
      float even[16] = {}, odd[16] = {}, sum[16];
      for (size_t k = 0; k < config.rows[b]; ++k)
        for (size_t n = 0; n < 16; ++n) {
          even[n] = std::fma(x[0][m][k], y[0][k][n], even[n]);
          odd[n] = std::fma(x[1][m][k], y[1][k][n], odd[n]);
        }
      std::memcpy(sum, bytes[c][m], 64);
      for (size_t n = 0; n < 16; ++n) sum[n] = sum[n] + (even[n] + odd[n]);
      std::memcpy(bytes[c][m], sum, config.row_bytes[c]);
    }
  }
  template <class X, class Y>  // int8_t or uint8_t
  INGOT_WITHIN_TILES void multiply_int8(int c, int a, int b) {
    check(c, a, b);
    for (size_t m = 0; m < config.rows[c]; ++m)
      for (size_t n = 0; n < config.row_bytes[c] / 4u; ++n) {
        int32_t sum;
        std::memcpy(&sum, &bytes[c][m][n * 4], 4);
        for (size_t k = 0; k < config.row_bytes[a]; ++k)
          sum += int32_t(X(bytes[a][m][k])) * int32_t(Y(bytes[b][k / 4][n * 4 + k % 4]));
        std::memcpy(&bytes[c][m][n * 4], &sum, 4);
      }
  }

 private:
  void used(int tile) const {
    if (!config.rows[tile] || !config.row_bytes[tile]) std::abort();  // the instruction faults
  }
  void check(int c, int a, int b) const {
    used(a), used(b), used(c);
    if (config.rows[c] != config.rows[a] || config.row_bytes[c] != config.row_bytes[b] ||
        config.row_bytes[a] != config.rows[b] * 4) {
      std::abort();
    }
  }
  // The even and the odd elements of a tile of bf16.
  INGOT_WITHIN_TILES void widen(int tile, float (&to)[2][16][16]) const {
    for (size_t r = 0; r < 16; ++r)
      for (size_t i = 0; i < 16; ++i) {
        uint32_t pair;
        std::memcpy(&pair, &bytes[tile][r][i * 4], 4);
        const uint32_t halves[] = {pair << 16, pair & 0xffff0000};
        for (int half = 0; half < 2; ++half) std::memcpy(&to[half][r][i], &halves[half], 4);
      }
  }
};

inline thread_local Tiles tiles;

}  // namespace ingot::test

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_dpbssd
#undef _tile_dpbsud
#undef _tile_dpbusd
#undef _tile_dpbuud
#define _tile_loadconfig(from) ::ingot::test::tiles.configure(from)
#define _tile_release() ::ingot::test::tiles.release()
#define _tile_zero(tile) ::ingot::test::tiles.zero(tile)
#define _tile_loadd(tile, from, stride) ::ingot::test::tiles.load(tile, from, size_t(stride))
#define _tile_stream_loadd(tile, from, stride) ::ingot::test::tiles.load(tile, from, size_t(stride))
#define _tile_stored(tile, to, stride) ::ingot::test::tiles.store(tile, to, size_t(stride))
#define _tile_dpbf16ps(c, a, b) ::ingot::test::tiles.multiply_bf16(c, a, b)
#define _tile_dpbssd(c, a, b) (::ingot::test::tiles.multiply_int8<int8_t, int8_t>(c, a, b))
#define _tile_dpbsud(c, a, b) (::ingot::test::tiles.multiply_int8<int8_t, uint8_t>(c, a, b))
#define _tile_dpbusd(c, a, b) (::ingot::test::tiles.multiply_int8<uint8_t, int8_t>(c, a, b))
#define _tile_dpbuud(c, a, b) (::ingot::test::tiles.multiply_int8<uint8_t, uint8_t>(c, a, b))

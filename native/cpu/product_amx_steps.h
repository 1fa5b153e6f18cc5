// The register block of an AMX product: up to 32 rows by 32 outputs, over a run of steps along K.
#pragma once
#include <algorithm>

#include "expand.h"
#include "product_amx_rows.h"

namespace ingot::cpu::INGOT_ISA {

// Sums of 32 rows by 32 outputs: [row tile][output tile][16][16].
template <class T>
using TileSums = T[2][2][kTileHeight * kLanes];

// What a run of steps multiplies: x[row tile] and weights[output tile], each one tile after the other. Of integers the
// scales, from the run's first block on: of the two output tiles (a block apart: 16 each), of the rows (a block apart:
// row_stride).
struct TileOperands {
  const std::byte *x[2], *weights[2];
  const uint16_t* weight_scales[2];
  const float* row_scales;
  size_t row_stride;
};

// A block of one or two row tiles by one or two output tiles.
struct TileShape {
  bool two_rows = false, two_tiles = false;
  bool operator==(const TileShape&) const = default;
};
// Calls f with the row and output tiles of a shape as constants.
template <class F>
inline void with_shape(TileShape shape, const F& f) {
  if (shape.two_rows) shape.two_tiles ? f.template operator()<2, 2>() : f.template operator()<2, 1>();
  else shape.two_tiles ? f.template operator()<1, 2>() : f.template operator()<1, 1>();
}

// Integer sums of a block along K that wait to be scaled: that is done while tiles multiply the next block, whichever.
struct Unscaled {
  alignas(64) TileSums<int32_t> sums[2];
  bool second = false;                // which of them waits
  TileSums<float>* acc = nullptr;     // nullptr: none does
  TileShape shape;
  const uint16_t* weight_scales[2] = {};
  const float* row_scales = nullptr;
};

// What is done meanwhile, at each step i of a run.
struct Nothing {
  void operator()(size_t) const {}
};

// Weights that come from memory for these rows alone, into L1.
struct PrefetchWeights {
  static constexpr size_t kAhead = 2048;
  const std::byte *first, *second;
  void operator()(size_t i) const {
    for (const std::byte* weights : {first, second}) {
      for (size_t line = 0; line < kTileBytes; line += 64) {
        _mm_prefetch(weights + i * kTileBytes + kAhead + line, _MM_HINT_T0);
      }
    }
  }
};

// The next int4 weights, expanded while tiles multiply those before: memory is read throughout.
struct ExpandNext {
  const Factors* factors;
  size_t k;               // padded to 32
  Range tiles, piece;     // up to two output tiles; steps along K, or none
  std::byte* buffers[2];  // of each output tile

  // Step i of the piece, if it has so many.
  void operator()(size_t i) const {
    if (piece.begin + i >= piece.end) return;
    const size_t from = (piece.begin + i) * Int8Tiles::kStep, to = std::min(from + Int8Tiles::kStep, k);
    for (size_t t = 0; t < tiles.end - tiles.begin; ++t) {
      const size_t tile = tiles.begin + t;
      std::byte* out = buffers[t] + i * kTileBytes;
      if (to - from < Int8Tiles::kStep) std::memset(out, 0, kTileBytes);
      prefetch_scales(tile + 2, from);
      expand_tile(*factors, k, tile, {from, to}, reinterpret_cast<int8_t*>(out), ahead(from));
    }
  }

 private:
  // Past its end a stream goes on two tiles later.
  ptrdiff_t ahead(size_t from) const {
    const size_t bytes = k * kLanes / 2, at = from * kLanes / 2;
    return ptrdiff_t(kExpandAhead + (at + kExpandAhead < bytes ? 0 : bytes));
  }
  void prefetch_scales(size_t tile, size_t from) const {
    __builtin_prefetch(factors->sub_scales.as<int8_t>() + (tile * (k / kQuantGroup) + from / kQuantGroup) * kLanes);
    __builtin_prefetch(factors->scales.as<uint16_t>() + (tile * ceil_div(k, kQuantBlock) + from / kQuantBlock) * kLanes);
  }
};

// The weights of the next pair of tiles up to `end`, into L2.
struct PrefetchNext {
  const std::byte *first, *second;
  size_t end, bytes;  // the latter: of each at a step, a multiple of 64
  void operator()(size_t i) const {
    for (size_t at = i * bytes; at < (i + 1) * bytes && at < end; at += 64) {
      _mm_prefetch(first + at, _MM_HINT_T1);
      _mm_prefetch(second + at, _MM_HINT_T1);
    }
  }
  // After a run of `steps`.
  void advance(size_t steps) {
    const size_t done = steps * bytes;
    first += done, second += done;
    end -= done < end ? done : end;
  }
};

// Tiles 0 to 3 hold sums, 4 and 5 rows, 6 and 7 weights. The intrinsics are macros that take numerals only.
template <class Tiles, int Sum>
inline void multiply_tiles() {
  if constexpr (Tiles::kStep == Bf16Tiles::kStep) {
    if constexpr (Sum == 0) _tile_dpbf16ps(0, 4, 6);
    else if constexpr (Sum == 1) _tile_dpbf16ps(1, 4, 7);
    else if constexpr (Sum == 2) _tile_dpbf16ps(2, 5, 6);
    else _tile_dpbf16ps(3, 5, 7);
  } else {
    if constexpr (Sum == 0) _tile_dpbssd(0, 4, 6);
    else if constexpr (Sum == 1) _tile_dpbssd(1, 4, 7);
    else if constexpr (Sum == 2) _tile_dpbssd(2, 5, 6);
    else _tile_dpbssd(3, 5, 7);
  }
}

// Adds step i of R row tiles and T output tiles.
template <class Tiles, int R, int T>
inline void add_step(const TileOperands& o, size_t i) {
  const size_t at = i * kTileBytes;
  _tile_loadd(6, o.weights[0] + at, 64);
  _tile_loadd(4, o.x[0] + at, 64);
  multiply_tiles<Tiles, 0>();
  if constexpr (T > 1) {
    _tile_loadd(7, o.weights[1] + at, 64);
    multiply_tiles<Tiles, 1>();
  }
  if constexpr (R > 1) {
    _tile_loadd(5, o.x[1] + at, 64);
    multiply_tiles<Tiles, 2>();
    if constexpr (T > 1) multiply_tiles<Tiles, 3>();
  }
}

template <int R, int T>
inline void zero_tiles() {
  _tile_zero(0);
  if constexpr (T > 1) _tile_zero(1);
  if constexpr (R > 1) _tile_zero(2);
  if constexpr (R > 1 && T > 1) _tile_zero(3);
}

template <int R, int T>
inline void load_tiles(const TileSums<float>& sums) {
  _tile_loadd(0, sums[0][0], 64);
  if constexpr (T > 1) _tile_loadd(1, sums[0][1], 64);
  if constexpr (R > 1) _tile_loadd(2, sums[1][0], 64);
  if constexpr (R > 1 && T > 1) _tile_loadd(3, sums[1][1], 64);
}

template <int R, int T, class Element>
inline void store_tiles(TileSums<Element>& sums) {
  _tile_stored(0, sums[0][0], 64);
  if constexpr (T > 1) _tile_stored(1, sums[0][1], 64);
  if constexpr (R > 1) _tile_stored(2, sums[1][0], 64);
  if constexpr (R > 1 && T > 1) _tile_stored(3, sums[1][1], 64);
}

// acc = x . weights over `steps`, plus acc unless they are the first.
template <int R, int T, class Meanwhile>
void add_steps(Bf16Tiles, const TileOperands& operands, size_t steps, bool first, const Meanwhile& meanwhile,
               TileSums<float>& acc, Unscaled&) {
  const TileOperands o = operands;
  asm volatile("" ::: "memory");  // tile loads do not say that they read
  if (first) zero_tiles<R, T>();
  else load_tiles<R, T>(acc);
  for (size_t i = 0; i < steps; ++i) {
    meanwhile(i);
    add_step<Bf16Tiles, R, T>(o, i);
  }
  store_tiles<R, T>(acc);
  asm volatile("" ::: "memory");
}

// acc = fma(sums of a block, both scales, acc) in a quarter of the rows.
template <int R, int T>
inline void add_scaled(const Unscaled& u, size_t quarter) {
  constexpr size_t kQuarter = R * kTileHeight / 4;
  const size_t r = quarter * kQuarter / kTileHeight, begin = quarter * kQuarter % kTileHeight;
  Vec weight_scale[T];
  for (int t = 0; t < T; ++t) weight_scale[t] = load_f16(u.weight_scales[t]);
  const float* row_scales = u.row_scales + r * kTileHeight + begin;
  const int32_t* sums = u.sums[u.second][r][0] + begin * kLanes;
  float* acc = (*u.acc)[r][0] + begin * kLanes;
#pragma GCC unroll 8
  for (size_t i = 0; i < kQuarter; ++i) {
    const Vec row_scale = set(row_scales[i]);
#pragma GCC unroll 2
    for (int t = 0; t < T; ++t) {
      const size_t at = (t * kTileHeight + i) * kLanes;
      const Vec sum = to_float(peek<Ints>(sums + at));
      store(acc + at, fma(sum, weight_scale[t] * row_scale, load(acc + at)));
    }
  }
}

// What waits, if anything does.
inline void add_scaled(Unscaled& u) {
  if (!u.acc) return;
  with_shape(u.shape, [&]<int R, int T>() {
    for (size_t quarter = 0; quarter < 4; ++quarter) add_scaled<R, T>(u, quarter);
  });
  u.acc = nullptr;
}

// The sums of the last block are left in `unscaled`; what waits there before is of the same shape.
template <int R, int T, class Meanwhile>
void add_steps(Int8Tiles, const TileOperands& operands, size_t steps, bool first, const Meanwhile& meanwhile,
               TileSums<float>& acc, Unscaled& unscaled) {
  constexpr size_t kBlockSteps = kQuantBlock / Int8Tiles::kStep;
  static_assert(kBlockSteps == 4, "a quarter of the last block is scaled at each step");
  const TileOperands o = operands;
  if (first) std::memset(acc, 0, sizeof acc);
  for (size_t block = 0; block * kBlockSteps < steps; ++block) {
    asm volatile("" ::: "memory");
    zero_tiles<R, T>();
#pragma GCC unroll 4
    for (size_t i = 0; i < kBlockSteps; ++i) {
      const size_t at = block * kBlockSteps + i;
      if (at < steps) {
        meanwhile(at);
        add_step<Int8Tiles, R, T>(o, at);
      }
      if (unscaled.acc) add_scaled<R, T>(unscaled, i);
    }
    unscaled.second = !unscaled.second;
    store_tiles<R, T>(unscaled.sums[unscaled.second]);
    asm volatile("" ::: "memory");
    unscaled.acc = &acc;
    unscaled.shape = {R > 1, T > 1};
    for (int t = 0; t < T; ++t) unscaled.weight_scales[t] = o.weight_scales[t] + block * kLanes;
    unscaled.row_scales = o.row_scales + block * o.row_stride;
  }
}

}  // namespace ingot::cpu::INGOT_ISA

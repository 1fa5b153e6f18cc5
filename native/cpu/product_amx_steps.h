// The register block of an AMX product: up to 32 rows by 32 outputs, over a run of steps along K.
#pragma once
#include <algorithm>

#include "expand.h"
#include "product_amx_rows.h"

namespace ingot::cpu::INGOT_ISA {

inline constexpr size_t kBlockRows = 2 * kTileHeight;

// Sums of 32 rows by 32 outputs: [row tile][output tile][16][16].
template <class T>
using TileSums = T[2][2][kTileHeight * kLanes];

// What a run of steps multiplies: x[row tile] and weights[output tile], each one tile after the other. Of integers the
// scales, from the run's first block on: of the two output tiles (a block apart: 16 each), of the rows (a block apart:
// row_stride).
struct TileOperands {
  const std::byte *x[2], *weights[2];
  size_t x_bytes;  // of a tile of x
  const uint16_t* weight_scales[2];
  const float* row_scales;
  size_t row_stride;
  size_t rows;  // of the block that x has
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

// Integer sums of a block along K, and what they are scaled by and added to.
struct BlockSums {
  const TileSums<int32_t>* sums = nullptr;
  TileSums<float>* acc = nullptr;     // nullptr: there are none
  const uint16_t* weight_scales[2] = {};
  const float* row_scales = nullptr;
  size_t rows = 0;
};

// Blocks that wait to be scaled, of one shape: that is done while tiles multiply those after them, whichever. Tiles store
// late, so a block is scaled from the second step after it on: the last quarter of `now` in the step before `next`.
struct Unscaled {
  alignas(64) TileSums<int32_t> sums[2];  // of blocks in turn
  bool second = false;                    // which of them the next block has
  TileShape shape;
  BlockSums now, next;
};

// What is done meanwhile, at each step i of a run.
struct Nothing {
  void operator()(size_t) const {}
};

// Weights that come from memory for these rows alone, in two streams.
struct PrefetchWeights {
  const std::byte *first, *second;
  size_t begin, bytes;  // of an output tile: where the run begins, and all
  void operator()(size_t i) const {
    const ptrdiff_t far = far_ahead<2>(begin + i * kTileBytes, bytes);
    for (const std::byte* weights : {first, second}) {
      for (size_t line = 0; line < kTileBytes; line += 64) prefetch_weight(weights + i * kTileBytes + line, far);
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
    prefetch<kIntoL1>(factors->sub_scales.as<int8_t>() + (tile * (k / kQuantGroup) + from / kQuantGroup) * kLanes);
    prefetch<kIntoL1>(factors->scales.as<uint16_t>() + (tile * ceil_div(k, kQuantBlock) + from / kQuantBlock) * kLanes);
  }
};

// What is asked for into L2 meanwhile: `left` bytes of N streams, `bytes` of each at a step.
template <size_t N>
struct Ahead {
  const std::byte* from[N] = {};
  size_t left = 0, bytes = 0;  // the latter a multiple of 64

  // Spreads all over so many steps.
  Ahead over(size_t steps) const {
    Ahead spread = *this;
    return spread.bytes = round_up(ceil_div(left, steps), 64), spread;
  }
  void operator()(size_t i) const {
    for (size_t at = i * bytes; at < (i + 1) * bytes && at < left; at += 64)
      for (size_t n = 0; n < N; ++n) prefetch<kIntoL2>(from[n] + at);
  }
  // After a run of `steps`.
  void advance(size_t steps) {
    const size_t done = std::min(left, steps * bytes);
    for (size_t n = 0; n < N; ++n) from[n] += done;
    left -= done;
  }
};

// The weights of the next pair of tiles, and of the next rows what L2 does not hold.
struct PrefetchNext {
  Ahead<2> weights;
  Ahead<1> rows;
  void operator()(size_t i) const { weights(i), rows(i); }
  void advance(size_t steps) { weights.advance(steps), rows.advance(steps); }
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

// Tiles 0 and 1 hold the sums of row tile 0, 2 and 3 those of row tile 1.
template <int Row, int T>
inline void zero_tiles() {
  if constexpr (Row == 0) _tile_zero(0);
  else _tile_zero(2);
  if constexpr (T > 1) {
    if constexpr (Row == 0) _tile_zero(1);
    else _tile_zero(3);
  }
}
template <int Row, int T>
inline void load_tiles(const TileSums<float>& sums) {
  if constexpr (Row == 0) _tile_loadd(0, sums[0][0], 64);
  else _tile_loadd(2, sums[1][0], 64);
  if constexpr (T > 1) {
    if constexpr (Row == 0) _tile_loadd(1, sums[0][1], 64);
    else _tile_loadd(3, sums[1][1], 64);
  }
}
template <int Row, int T, class Element>
inline void store_tiles(TileSums<Element>& sums) {
  if constexpr (Row == 0) _tile_stored(0, sums[0][0], 64);
  else _tile_stored(2, sums[1][0], 64);
  if constexpr (T > 1) {
    if constexpr (Row == 0) _tile_stored(1, sums[0][1], 64);
    else _tile_stored(3, sums[1][1], 64);
  }
}
template <int R, int T, class Element>
inline void store_all_tiles(TileSums<Element>& sums) {
  store_tiles<0, T>(sums);
  if constexpr (R > 1) store_tiles<1, T>(sums);
}

// Adds step i of R row tiles and T output tiles; ready<Row>() is done before the first product of each row tile. Weights
// stay in L1 for the next rows; rows of x are loaded past it.
template <class Tiles, int R, int T, class Ready>
inline void add_step(const TileOperands& o, size_t i, const Ready& ready) {
  const size_t at = i * kTileBytes, x_at = i * o.x_bytes;
  ready.template operator()<0>();
  _tile_loadd(6, o.weights[0] + at, 64);
  _tile_stream_loadd(4, o.x[0] + x_at, 64);
  multiply_tiles<Tiles, 0>();
  if constexpr (T > 1) {
    _tile_loadd(7, o.weights[1] + at, 64);
    multiply_tiles<Tiles, 1>();
  }
  if constexpr (R > 1) {
    ready.template operator()<1>();
    _tile_stream_loadd(5, o.x[1] + x_at, 64);
    multiply_tiles<Tiles, 2>();
    if constexpr (T > 1) multiply_tiles<Tiles, 3>();
  }
}

// acc = x . weights over `steps`, plus acc unless they are the first.
template <int R, int T, class Meanwhile>
void add_steps(Bf16Tiles, const TileOperands& operands, size_t steps, bool first, const Meanwhile& meanwhile,
               TileSums<float>& acc, Unscaled&) {
  const TileOperands o = operands;
  asm volatile("" ::: "memory");  // tile loads do not say that they read
  const auto begin = [&]<int Row>() {
    if (first) zero_tiles<Row, T>();
    else load_tiles<Row, T>(acc);
  };
  for (size_t i = 0; i < steps; ++i) {
    meanwhile(i);
    if (i == 0) add_step<Bf16Tiles, R, T>(o, i, begin);
    else add_step<Bf16Tiles, R, T>(o, i, [&]<int>() {});
  }
  store_all_tiles<R, T>(acc);
  asm volatile("" ::: "memory");
}

// acc = fma(sums of a block, both scales, acc) in a quarter of the rows, if there are any, inlined for its addresses to be
// constants.
template <int R, int T>
[[gnu::always_inline]] inline void add_scaled(const BlockSums& block, size_t quarter) {
  constexpr size_t kQuarter = R * kTileHeight / 4;
  if (quarter * kQuarter >= block.rows) return;
  const size_t r = quarter * kQuarter / kTileHeight, begin = quarter * kQuarter % kTileHeight;
  Vec weight_scale[T];
  for (int t = 0; t < T; ++t) weight_scale[t] = load_f16(block.weight_scales[t]);
  const float* row_scales = block.row_scales + r * kTileHeight + begin;
  const int32_t* sums = (*block.sums)[r][0] + begin * kLanes;
  float* acc = (*block.acc)[r][0] + begin * kLanes;
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
  with_shape(u.shape, [&]<int R, int T>() {
    if (u.now.acc) add_scaled<R, T>(u.now, 3);
    for (size_t quarter = 0; u.next.acc && quarter < 4; ++quarter) add_scaled<R, T>(u.next, quarter);
  });
  u.now = u.next = {};
}

// acc += x . weights over `steps`, from 0 if they are the first. The last blocks are left in `unscaled`; what waits there
// before is of the same shape.
template <int R, int T, class Meanwhile>
void add_steps(Int8Tiles, const TileOperands& operands, size_t steps, bool first, const Meanwhile& meanwhile,
               TileSums<float>& acc, Unscaled& unscaled) {
  constexpr size_t kBlockSteps = kQuantBlock / Int8Tiles::kStep;
  static_assert(kBlockSteps == 4, "a quarter of a block is scaled at each step");
  const TileOperands o = operands;
  TileSums<int32_t>* sums = nullptr;  // of the block before
  if (first) std::memset(acc, 0, sizeof acc);
  asm volatile("" ::: "memory");
  // The sums of a row tile are stored just before they are needed again: those of the other still multiply.
  const auto begin = [&]<int Row>() {
    if (sums) store_tiles<Row, T>(*sums);
    zero_tiles<Row, T>();
  };
  for (size_t block = 0; block * kBlockSteps < steps; ++block) {
#pragma GCC unroll 4
    for (size_t i = 0; i < kBlockSteps; ++i) {
      const size_t at = block * kBlockSteps + i;
      if (at < steps) {
        meanwhile(at);
        if (i == 0) add_step<Int8Tiles, R, T>(o, at, begin);
        else add_step<Int8Tiles, R, T>(o, at, [&]<int>() {});
      }
      if (unscaled.now.acc) add_scaled<R, T>(unscaled.now, (i + 3) % kBlockSteps);
      if (i == 0) unscaled.now = unscaled.next, unscaled.next.acc = nullptr;
    }
    sums = &unscaled.sums[unscaled.second];
    unscaled.second = !unscaled.second;
    unscaled.shape = {R > 1, T > 1};
    unscaled.next = {sums, &acc, {}, o.row_scales + block * o.row_stride, o.rows};
    for (int t = 0; t < T; ++t) unscaled.next.weight_scales[t] = o.weight_scales[t] + block * kLanes;
  }
  store_all_tiles<R, T>(*sums);
  asm volatile("" ::: "memory");
}

}  // namespace ingot::cpu::INGOT_ISA

// Products on AMX tiles, in blocks of 32 rows by 32 outputs.
//
// A tile is 16 rows of 64 bytes, a *step* along K: 32 bf16 or 64 int8. Rows of x are packed tile after tile; weights are
// read as they lie (tile16x2, tile16x4), int4 is expanded first. Outputs pass in panels, and K in chunks: the weights of
// two output tiles over a chunk stay in L1 while all rows pass, and the rows of a chunk in L2 while a panel passes.
#include "product_amx.h"

#if defined(INGOT_ISA_amx)

#include "expand.h"
#include "quantize.h"

namespace ingot::cpu::INGOT_ISA {
namespace {

constexpr size_t kRows = kLanes, kTileBytes = 1024;
constexpr size_t kChunkSteps = 8;     // 2 x 8 KB of weights, and as much of rows
constexpr size_t kFewChunkSteps = 4;  // int4 for few rows: expanded and used at once
constexpr size_t kPanelTiles = 16;    // 512 rows by 256 outputs of sums: 512 KB
constexpr size_t kPassRows = 512;
constexpr size_t kFewRows = 64;       // up to here a step is bound by memory: weights are prefetched, in two streams
constexpr size_t kTilePrefetchBytes = 2048;
// Rows from which a tile product beats vectors: fewer leave most of a tile empty.
constexpr size_t kLeastRows = 5, kLeastInt4Rows = 9;

// Palette 1, eight tiles. Static: the compiler does not see that the instruction reads it.
struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
alignas(64) constexpr TileConfig kTiles;

// Sums of 32 rows by 32 outputs: [row tile][output tile][16][16].
template <class T>
using Sums = T[2][2][kRows * kLanes];

template <auto Hint>
inline void prefetch(const std::byte* p, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) _mm_prefetch(p + i, Hint);
}

// What comes after, asked for meanwhile, some bytes at each step.
struct Ahead {
  const std::byte* at;
  size_t bytes;  // a step, a multiple of 64
  static size_t share(size_t total, size_t steps) { return round_up(ceil_div(total, steps), 64); }
};

// Operands of a run of steps: x[row tile] and weights[output tile], each one tile after the other.
struct Steps {
  const std::byte *x[2], *weights[2];
  size_t weights_ahead;  // bytes from a weight tile to one wanted soon; 0: none
  Ahead next[3];         // the weights of the next two tiles, the next chunk of rows
};

// Tiles 0 to 3 hold sums, 4 and 5 rows, 6 and 7 weights. The intrinsics are macros that take numerals only.
#define INGOT_TILE_DOT(instruction)                          \
  template <int Sum>                                         \
  static void dot() {                                        \
    if constexpr (Sum == 0) instruction(0, 4, 6);            \
    else if constexpr (Sum == 1) instruction(1, 4, 7);       \
    else if constexpr (Sum == 2) instruction(2, 5, 6);       \
    else instruction(3, 5, 7);                               \
  }
struct Bf16Tiles {
  static constexpr size_t kStep = 32;
  INGOT_TILE_DOT(_tile_dpbf16ps)
};
struct Int8Tiles {
  static constexpr size_t kStep = 64;
  INGOT_TILE_DOT(_tile_dpbssd)
};
#undef INGOT_TILE_DOT

// Adds step i to the sums.
template <class Tiles, int R, int T>
inline void step(const Steps& s, size_t i) {
  const size_t at = i * kTileBytes;
  if (s.weights_ahead) {
    for (int t = 0; t < T; ++t) prefetch<_MM_HINT_T0>(s.weights[t] + at + s.weights_ahead, kTileBytes);
  }
  for (const Ahead& next : s.next) prefetch<_MM_HINT_T1>(next.at + i * next.bytes, next.bytes);
  _tile_loadd(6, s.weights[0] + at, 64);
  _tile_loadd(4, s.x[0] + at, 64);
  Tiles::template dot<0>();
  if constexpr (T > 1) {
    _tile_loadd(7, s.weights[1] + at, 64);
    Tiles::template dot<1>();
  }
  if constexpr (R > 1) {
    _tile_loadd(5, s.x[1] + at, 64);
    Tiles::template dot<2>();
    if constexpr (T > 1) Tiles::template dot<3>();
  }
}

template <int R, int T>
inline void zero_tiles() {
  _tile_zero(0);
  if constexpr (T > 1) _tile_zero(1);
  if constexpr (R > 1) _tile_zero(2);
  if constexpr (R > 1 && T > 1) _tile_zero(3);
}

template <int R, int T, class Element>
inline void store_tiles(Sums<Element>& sums) {
  _tile_stored(0, sums[0][0], 64);
  if constexpr (T > 1) _tile_stored(1, sums[0][1], 64);
  if constexpr (R > 1) _tile_stored(2, sums[1][0], 64);
  if constexpr (R > 1 && T > 1) _tile_stored(3, sums[1][1], 64);
}

// What a chunk of a block of sums needs besides its operands.
struct Chunk {
  size_t steps;
  bool first;
  // Of integers, from the chunk's first block on: scales of the two output tiles (a block apart: 16 each), of the rows
  // (a block apart: `rows`).
  const uint16_t* weight_scales[2];
  const float* row_scales;
  size_t rows;
};

template <int R, int T>
void add_chunk(Bf16Tiles, const Steps& s, const Chunk& chunk, Sums<float>& acc) {
  asm volatile("" ::: "memory");  // tile loads do not say that they read
  if (chunk.first) {
    zero_tiles<R, T>();
  } else {
    _tile_loadd(0, acc[0][0], 64);
    if constexpr (T > 1) _tile_loadd(1, acc[0][1], 64);
    if constexpr (R > 1) _tile_loadd(2, acc[1][0], 64);
    if constexpr (R > 1 && T > 1) _tile_loadd(3, acc[1][1], 64);
  }
  for (size_t i = 0; i < chunk.steps; ++i) step<Bf16Tiles, R, T>(s, i);
  store_tiles<R, T>(acc);
  asm volatile("" ::: "memory");
}

// acc = fma(sums of a block, both scales, acc) of one of the four tiles.
inline void add_scaled(const int32_t* sums, Vec weight_scale, const float* row_scales, bool first, float* acc) {
#pragma GCC unroll 16
  for (size_t r = 0; r < kRows; ++r) {
    const Vec before = first ? zero() : load(acc + r * kLanes);
    const Vec sum = to_float(peek<Ints>(sums + r * kLanes));
    store(acc + r * kLanes, fma(sum, weight_scale * set(row_scales[r]), before));
  }
}

template <int R, int T>
void add_chunk(Int8Tiles, const Steps& s, const Chunk& chunk, Sums<float>& acc) {
  constexpr size_t kBlockSteps = kQuantBlock / Int8Tiles::kStep;
  alignas(64) Sums<int32_t> sums[2];
  // Quarter i of block b is scaled while the tiles of block b + 1 are busy.
  const auto scale = [&](size_t block, size_t i) {
    const size_t r = i / 2, t = i % 2;
    if (r >= size_t(R) || t >= size_t(T)) return;
    add_scaled(sums[block % 2][r][t], load_f16(chunk.weight_scales[t] + block * kLanes),
               chunk.row_scales + block * chunk.rows + r * kRows, chunk.first && block == 0, acc[r][t]);
  };
  const size_t blocks = ceil_div(chunk.steps, kBlockSteps);
  for (size_t b = 0; b < blocks; ++b) {
    asm volatile("" ::: "memory");
    zero_tiles<R, T>();
    for (size_t i = 0; i < kBlockSteps; ++i) {
      if (b * kBlockSteps + i < chunk.steps) step<Int8Tiles, R, T>(s, b * kBlockSteps + i);
      if (b) scale(b - 1, i);
    }
    store_tiles<R, T>(sums[b % 2]);
    asm volatile("" ::: "memory");
  }
  for (size_t i = 0; i < kBlockSteps; ++i) scale(blocks - 1, i);
}

// x as tiles: (chunk, row tile, step of the chunk) of 1 KB; rows and K are padded with zeros. A chunk lies in one piece:
// rows a power of two apart would fall on the same sets of L2. Scales of integers: (block, row).
struct Packed {
  const std::byte* tiles;
  const float* scales;
  size_t rows, steps, chunk_steps;  // rows padded to 16

  static size_t bytes(size_t rows, size_t steps, size_t chunk_steps) { return rows * round_up(steps, chunk_steps) * 64; }
  size_t offset(size_t row, size_t step) const {
    const size_t chunk = step / chunk_steps, tile = (chunk * (rows / kRows) + row / kRows) * chunk_steps;
    return (tile + step % chunk_steps) * kTileBytes + row % kRows * 64;
  }
};

// Calls body(r, row r of x or nullptr past its end) for each row of tiles. A thread normalises into one buffer.
template <class Body>
void each_packed_row(const Context& context, const Input& x, const Packed& p, const Body& body) {
  float* buffers = x.norm ? context.scratch.take<float>(context.pool.threads() * x.width) : nullptr;
  context.pool.parallel(p.rows, ceil_div(kForkElements, x.width), [&](size_t begin, size_t end, unsigned thread) {
    for (size_t r = begin; r < end; ++r) {
      const float* row = r < x.rows ? x.row<float>(r) : nullptr;
      if (row && x.norm) {
        float* buffer = buffers + thread * x.width;
        rms_normalize(row, x.norm, buffer, x.width, x.eps, x.offset);
        row = buffer;
      }
      body(r, row);
    }
  });
}

template <class Tiles>
Packed packed(const Context& context, const Input& x, size_t chunk_steps, std::byte*& tiles) {
  const size_t rows = round_up(x.rows, kRows), steps = ceil_div(x.width, Tiles::kStep);
  tiles = context.scratch.take<std::byte>(Packed::bytes(rows, steps, chunk_steps));
  return {tiles, nullptr, rows, steps, chunk_steps};
}

Packed pack(Bf16Tiles, const Context& context, const Input& x, size_t chunk_steps) {
  std::byte* tiles;
  const Packed p = packed<Bf16Tiles>(context, x, chunk_steps, tiles);
  each_packed_row(context, x, p, [&](size_t r, const float* row) {
    for (size_t i = 0; i < p.steps; i += p.chunk_steps) {
      std::byte* to = tiles + p.offset(r, i);
      const size_t end = p.steps - i < p.chunk_steps ? p.steps : i + p.chunk_steps;
      for (size_t c = i * Bf16Tiles::kStep; c < end * Bf16Tiles::kStep; c += Bf16Tiles::kStep, to += kTileBytes) {
        for (size_t half = 0; half < Bf16Tiles::kStep; half += kLanes) {
          const size_t at = c + half, left = row && at < x.width ? x.width - at : 0;
          const Vec v = left ? load_n(row + at, left < kLanes ? left : kLanes) : zero();
          store_bf16(reinterpret_cast<uint16_t*>(to) + half, v);
        }
      }
    }
  });
  return p;
}

Packed pack(Int8Tiles, const Context& context, const Input& x, size_t chunk_steps) {
  constexpr size_t kStep = Int8Tiles::kStep;
  std::byte* tiles;
  Packed p = packed<Int8Tiles>(context, x, chunk_steps, tiles);
  float* scales = context.scratch.take<float>(p.rows * ceil_div(x.width, kQuantBlock));
  p.scales = scales;
  each_packed_row(context, x, p, [&](size_t r, const float* row) {
    for (size_t i = 0; i < p.steps; i += kQuantBlock / kStep) {  // a block lies within a chunk
      const size_t begin = i * kStep, left = x.width - begin, count = left < kQuantBlock ? left : kQuantBlock;
      int8_t* to = reinterpret_cast<int8_t*>(tiles + p.offset(r, i));
      float& scale = scales[begin / kQuantBlock * p.rows + r];
      const size_t whole = row ? count / kStep * kStep : 0;  // the rest is padded with zeros
      for (size_t k = whole; k < count; k += kStep) std::memset(to + k / kStep * kTileBytes, 0, kStep);
      scale = row ? quantize_block(row + begin, count, [&](size_t k, Ints q) {
        store_i8(to + k / kStep * kTileBytes + k % kStep, q);
      }) : 0;
    }
  });
  return p;
}

// Where a thread works.
struct TileWorkspace {
  float* sums;         // of a panel: [pair of output tiles][32 rows] of Sums
  std::byte* weights;  // that do not lie ready: two output tiles of a chunk, twice
};

template <class Tiles>
class TileProduct {
 public:
  TileProduct(const Context& context, const Input& x, const Factors& factors, const Epilogue& epilogue,
              const Matrix& out)
      : factors_(factors), epilogue_(epilogue), out_(out), k_(round_up(x.width, 32)), few_(x.rows <= kFewRows),
        halves_(factors.weight.dtype == DType::i4), ready_(!halves_ && k_ % Tiles::kStep == 0),
        x_(pack(Tiles{}, context, x, few_ && halves_ ? kFewChunkSteps : kChunkSteps)) {
    const size_t tiles = ceil_div(out.width, kLanes), threads = context.pool.threads();
    const size_t pass_rows = x_.rows < kPassRows ? round_up(x_.rows, 2 * kRows) : kPassRows;
    const size_t sums = kPanelTiles / 2 * (pass_rows / (2 * kRows)), chunk = 4 * kChunkSteps * kTileBytes;
    TileWorkspace* workspaces = context.scratch.take<TileWorkspace>(threads);
    for (size_t i = 0; i < threads; ++i) {
      workspaces[i] = {context.scratch.take<float>(sums * sizeof(Sums<float>) / sizeof(float)),
                       ready_ ? nullptr : context.scratch.take<std::byte>(chunk)};
    }
    const size_t products = x.rows * k_ * out.width * epilogue.branches;
    split(context, tiles, x.rows, 2 * kRows, products, [&](Range outputs, Range rows, unsigned thread) {
      const Range range{outputs.begin * epilogue.branches, outputs.end * epilogue.branches};
      _tile_loadconfig(&kTiles);
      for (size_t row = rows.begin; row < rows.end; row += kPassRows) {
        const Range pass{row, rows.end - row < kPassRows ? rows.end : row + kPassRows};
        const size_t width = few_ ? 2 : kPanelTiles;
        for (size_t t = range.begin; t < range.end; t += width) {
          panel({t, range.end - t < width ? range.end : t + width}, pass, workspaces[thread]);
        }
      }
      _tile_release();
    });
  }

 private:
  static constexpr size_t kColumnBytes = kTileBytes / Tiles::kStep;  // of one k of 16 outputs

  static Sums<float>& sums_of(const TileWorkspace& w, size_t pair, size_t blocks, size_t block) {
    return reinterpret_cast<Sums<float>*>(w.sums)[pair * blocks + block];
  }

  // Where a column of one output tile is stored.
  const std::byte* stored(size_t tile, size_t k) const {
    return factors_.weight.as<std::byte>() + (tile * k_ + k) * kColumnBytes / (halves_ ? 2 : 1);
  }

  // Steps [begin, begin + steps) of one output tile.
  const std::byte* weights(size_t tile, size_t begin, size_t steps, std::byte* buffer) const {
    const size_t from = begin * Tiles::kStep, to = (begin + steps) * Tiles::kStep;
    if (ready_) return stored(tile, from);
    const Range ks{from, to < k_ ? to : k_};
    if (to > k_) std::memset(buffer, 0, steps * kTileBytes);
    if (halves_) expand_tile(factors_, k_, tile, ks, reinterpret_cast<int8_t*>(buffer));
    else std::memcpy(buffer, stored(tile, from), (ks.end - ks.begin) * kColumnBytes);
    return buffer;
  }

  static size_t blocks_of(Range rows) { return ceil_div(rows.end - rows.begin, 2 * kRows); }

  // What the steps of one pair of tiles ask for: what the next pair and chunk read.
  void look_ahead(Steps& s, Range tiles, size_t tile, Range rows, size_t begin, size_t steps) const {
    const size_t blocks = blocks_of(rows);
    const size_t after = begin + steps < x_.steps ? begin + steps : 0;
    const bool last = tile + 2 >= tiles.end;
    const size_t next = !last ? tile + 2 : after ? tiles.begin : tiles.end, from = last ? after : begin;
    const size_t chunk_bytes = steps * kTileBytes / (halves_ ? 2 : 1), pair_steps = blocks * steps;
    for (size_t t = 0; t < 2; ++t) {
      s.next[t] = {stored(next + t, from * Tiles::kStep), Ahead::share(chunk_bytes, pair_steps)};
    }
    const size_t pairs = ceil_div(tiles.end - tiles.begin, 2), pair = (tile - tiles.begin) / 2;
    const size_t bytes = Ahead::share((rows.end - rows.begin) * x_.chunk_steps * 64, pairs * pair_steps);
    s.next[2] = {x_.tiles + x_.offset(rows.begin, after) + pair * pair_steps * bytes, bytes};
  }

  // The steps of a pair of tiles; `slot` of two tells apart what is being read from what is being prepared.
  Steps pair_steps(Range tiles, size_t tile, size_t begin, size_t steps, size_t slot, const TileWorkspace& w) const {
    Steps s{};
    std::byte* buffer = w.weights + slot * 2 * kChunkSteps * kTileBytes;
    for (size_t t = 0; t < 2 && tile + t < tiles.end; ++t) {
      s.weights[t] = weights(tile + t, begin, steps, buffer + t * kChunkSteps * kTileBytes);
    }
    return s;
  }

  size_t steps_from(size_t begin) const {
    return x_.steps - begin < x_.chunk_steps ? x_.steps - begin : x_.chunk_steps;
  }

  // Few rows pass a pair of tiles at a time; the weights of a chunk are prepared while tiles multiply the last.
  void few_rows(Range tiles, Range rows, const TileWorkspace& w) const {
    Steps s = pair_steps(tiles, tiles.begin, 0, steps_from(0), 0, w);
    for (size_t begin = 0; begin < x_.steps; begin += x_.chunk_steps) {
      const size_t steps = steps_from(begin), after = begin + steps;
      Steps next{};
      if (after < x_.steps) {
        next = pair_steps(tiles, tiles.begin, after, steps_from(after), after / x_.chunk_steps % 2, w);
      }
      s.weights_ahead = ready_ ? kTilePrefetchBytes : 0;
      chunk_of_pair(tiles, tiles.begin, rows, begin, steps, s, w);
      s = next;
    }
  }

  void many_rows(Range tiles, Range rows, const TileWorkspace& w) const {
    for (size_t begin = 0; begin < x_.steps; begin += x_.chunk_steps) {
      const size_t steps = steps_from(begin);
      for (size_t t = tiles.begin; t < tiles.end; t += 2) {
        Steps s = pair_steps(tiles, t, begin, steps, 0, w);
        look_ahead(s, tiles, t, rows, begin, steps);
        chunk_of_pair(tiles, t, rows, begin, steps, s, w);
      }
    }
  }

  void chunk_of_pair(Range tiles, size_t tile, Range rows, size_t begin, size_t steps, Steps s,
                     const TileWorkspace& w) const {
    const size_t blocks = blocks_of(rows), pair = (tile - tiles.begin) / 2;
    for (size_t block = 0; block < blocks; ++block) {
      const size_t row = rows.begin + block * 2 * kRows;
      chunk(tile, tiles.end - tile > 1, row, rows.end - row > kRows, begin, steps, s, sums_of(w, pair, blocks, block));
      for (Ahead& next : s.next) next.at += steps * next.bytes;
      s.weights_ahead = 0;
    }
  }

  void panel(Range tiles, Range rows, const TileWorkspace& w) const {
    if (few_) few_rows(tiles, rows, w);
    else many_rows(tiles, rows, w);
    const size_t blocks = blocks_of(rows);
    for (size_t row = rows.begin; row < rows.end; ++row) {
      const size_t at = row - rows.begin;
      for (size_t t = tiles.begin; t < tiles.end; ++t) {
        const auto& sums = sums_of(w, (t - tiles.begin) / 2, blocks, at / (2 * kRows));
        const float* sum = sums[at / kRows % 2][(t - tiles.begin) % 2] + at % kRows * kLanes;
        finish(epilogue_, out_, row, t, load(sum));
      }
    }
  }

  void chunk(size_t tile, bool two_tiles, size_t row, bool two_rows, size_t begin, size_t steps, Steps s,
             Sums<float>& acc) const {
    const size_t blocks = ceil_div(k_, kQuantBlock), block = begin * Tiles::kStep / kQuantBlock;
    const uint16_t* scales = factors_.scales.as<uint16_t>();
    Chunk c{steps, begin == 0, {}, nullptr, x_.rows};
    if (x_.scales) {
      for (size_t t = 0; t < 2; ++t) c.weight_scales[t] = scales + ((tile + t) * blocks + block) * kLanes;
      c.row_scales = x_.scales + block * x_.rows + row;
    }
    for (size_t r = 0; r < 2; ++r) s.x[r] = x_.tiles + x_.offset(row + r * kRows, begin);
    if (two_rows) {
      if (two_tiles) add_chunk<2, 2>(Tiles{}, s, c, acc);
      else add_chunk<2, 1>(Tiles{}, s, c, acc);
    } else {
      if (two_tiles) add_chunk<1, 2>(Tiles{}, s, c, acc);
      else add_chunk<1, 1>(Tiles{}, s, c, acc);
    }
  }

  const Factors& factors_;
  const Epilogue& epilogue_;
  const Matrix& out_;
  const size_t k_;  // padded to 32, as weights are
  const bool few_, halves_, ready_;  // few rows; int4; weights that are tiles as they lie
  const Packed x_;
};

}  // namespace

bool amx_product(const Context& context, const Input& x, const Factors& factors, const Epilogue& epilogue,
                 const Matrix& out) {
  const size_t least = factors.weight.dtype == DType::i4 ? kLeastInt4Rows : kLeastRows;
  if (x.rows < least) return false;
  switch (factors.weight.dtype) {
    case DType::bf16: TileProduct<Bf16Tiles>(context, x, factors, epilogue, out); return true;
    case DType::i8:
    case DType::i4: TileProduct<Int8Tiles>(context, x, factors, epilogue, out); return true;
    default: return false;
  }
}

}  // namespace ingot::cpu::INGOT_ISA

#endif

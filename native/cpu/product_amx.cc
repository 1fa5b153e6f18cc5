// Products on AMX tiles, in blocks of 32 rows by 32 outputs.
//
// Rows of x are packed tile after tile; weights are read as they lie (tile16x2, tile16x4), int4 is expanded first. Outputs
// pass in panels, and K in pieces: the weights of two output tiles over a piece stay in L1 while all rows pass, and the
// rows of a piece in L2 while a panel passes. So rows are loaded as what L1 does not keep.
// What the next product alone reads is left as the tiles that it multiplies (ADR 0014).
#include "product_amx.h"

#if defined(INGOT_ISA_amx)

#include "product_amx_steps.h"

namespace ingot::cpu::INGOT_ISA {
namespace {

constexpr size_t kBlockRows = 2 * kTileHeight;
constexpr size_t kPassRows = 512;
constexpr size_t kPanelTiles = 16;   // 512 rows by 256 outputs of sums: 512 KB
constexpr size_t kFewRows = 64;      // up to here a step is bound by memory: weights are prefetched, in two streams
constexpr size_t kFewSteps = 8;      // of a piece of few rows
constexpr size_t kFewInt4Steps = 4;  // of int4, which is expanded and used at once
// Rows from which a tile product beats vectors: of weights in caches, which fewer rows read faster than tiles are set up;
// and of int4, which is expanded for tiles.
constexpr size_t kLeastCachedRows = 5, kLeastInt4Rows = 9;

// Where a thread works.
struct TileWorkspace {
  TileSums<float>* sums;  // of what is finished together: [pair of output tiles][block of rows]
  Unscaled* unscaled;
  std::byte* weights;     // that do not lie ready: two output tiles of a piece, twice
};

template <class Tiles>
class TileProduct {
 public:
  TileProduct(const Context& context, const Input& x, const Factors& factors, const Epilogue& epilogue,
              const Matrix& out)
      : factors_(factors), epilogue_(epilogue), out_(out), k_(round_up(x.width, 32)), few_(x.rows <= kFewRows),
        halves_(factors.weight.dtype == DType::i4), ready_(!halves_ && k_ % Tiles::kStep == 0),
        x_(x.tiles ? left_in(x) : pack_rows<Tiles>(context, x, piece_steps(x))) {
    const size_t tiles = ceil_div(out.width, kLanes), threads = context.pool.threads();
    TileWorkspace* workspaces = context.scratch.take<TileWorkspace>(threads);
    for (size_t i = 0; i < threads; ++i) workspaces[i] = workspace(context);
    const size_t products = x.rows * k_ * out.width * epilogue.branches;
    const size_t run = few_ ? kWholePart : kPanelTiles / epilogue.branches;
    const size_t unit = epilogue.tiles ? Tiles::kUnit / kLanes : 1;
    split(context, tiles, unit, x.rows, kBlockRows, products, run, [&](Range outputs, Range rows, unsigned thread) {
      const TileLease lease(kTileConfigs[x_.height - 1]);
      const Range range{outputs.begin * epilogue.branches, outputs.end * epilogue.branches};
      for (size_t row = rows.begin; row < rows.end; row += kPassRows) {
        const Range pass{row, rows.end - row < kPassRows ? rows.end : row + kPassRows};
        if (few_) few_rows(range, pass, workspaces[thread]);
        else many_rows(range, pass, workspaces[thread]);
      }
    });
  }

  // Whether rows of a register can be left there as tiles.
  static bool leaves(const Matrix& m) {
    const bool dense = m.stride == m.width * sizeof(float) && m.width % Tiles::kStep == 0;
    return dense && m.rows > kFewRows && left_in(m).bytes() <= m.rows * m.stride;
  }

 private:
  // Of few rows that are one block all of K, for nothing is read again.
  size_t piece_steps(const Input& x) const {
    if (!few_) return Tiles::kPieceSteps;
    if (halves_) return kFewInt4Steps;
    return ready_ && x.rows <= kBlockRows ? k_ / Tiles::kStep : kFewSteps;
  }

  static PackedRows left_in(const Matrix& m) {
    return PackedRows::of<Tiles>(m.rows, m.width, Tiles::kPieceSteps).in(m.data);
  }

  static constexpr size_t kColumnBytes = kTileBytes / Tiles::kStep;  // of one k of 16 outputs

  // Output tiles that are finished together: of many rows a panel, or as many as make a unit of what is left as tiles.
  size_t finished_tiles() const {
    if (few_) return 2;
    return epilogue_.tiles ? std::max(kPanelTiles, Tiles::kUnit / kLanes * epilogue_.branches) : kPanelTiles;
  }
  static size_t blocks_of(Range rows) { return ceil_div(rows.end - rows.begin, kBlockRows); }

  TileWorkspace workspace(const Context& context) const {
    const size_t blocks = blocks_of({0, x_.rows < kPassRows ? x_.rows : kPassRows});
    Unscaled* unscaled = context.scratch.take<Unscaled>(1);
    unscaled->second = false, unscaled->shape = {}, unscaled->now = unscaled->next = {};
    return {context.scratch.take<TileSums<float>>(finished_tiles() / 2 * blocks), unscaled,
            ready_ ? nullptr : context.scratch.take<std::byte>(4 * Tiles::kPieceSteps * kTileBytes)};
  }

  // The piece that begins at a step.
  Range piece_at(size_t step) const {
    return {step, x_.steps - step < x_.piece_steps ? x_.steps : step + x_.piece_steps};
  }

  // Where a column of one output tile is stored.
  const std::byte* stored(size_t tile, size_t k) const {
    return factors_.weight.as<std::byte>() + (tile * k_ + k) * kColumnBytes / (halves_ ? 2 : 1);
  }

  // A piece of one output tile, prepared in `buffer` unless it is ready.
  const std::byte* weights(size_t tile, Range piece, std::byte* buffer) const {
    const size_t from = piece.begin * Tiles::kStep, to = piece.end * Tiles::kStep;
    if (ready_) return stored(tile, from);
    const Range ks{from, to < k_ ? to : k_};
    if (to > k_) std::memset(buffer, 0, (piece.end - piece.begin) * kTileBytes);
    if (halves_) expand_tile(factors_, k_, tile, ks, reinterpret_cast<int8_t*>(buffer));
    else std::memcpy(buffer, stored(tile, from), (ks.end - ks.begin) * kColumnBytes);
    return buffer;
  }

  // Where output tile t of a pair is prepared; `slot` of two tells apart what is being read from what is being prepared.
  std::byte* buffer(size_t t, size_t slot, const TileWorkspace& w) const {
    return w.weights + (2 * slot + t) * Tiles::kPieceSteps * kTileBytes;
  }

  // A piece of a pair of output tiles; of int4 where it will be expanded, if `later`.
  TileOperands operands(Range pair, Range piece, size_t slot, const TileWorkspace& w, bool later = false) const {
    TileOperands o{};
    const size_t blocks = ceil_div(k_, kQuantBlock), block = piece.begin * Tiles::kStep / kQuantBlock;
    for (size_t t = 0; pair.begin + t < pair.end; ++t) {
      o.weights[t] = later ? buffer(t, slot, w) : weights(pair.begin + t, piece, buffer(t, slot, w));
      o.weight_scales[t] = factors_.scales.as<uint16_t>() + ((pair.begin + t) * blocks + block) * kLanes;
    }
    return o;
  }

  static Range pair_at(Range tiles, size_t t) { return {t, tiles.end - t < 2 ? tiles.end : t + 2}; }

  // Few rows pass a pair of tiles at a time; a piece is prepared while tiles multiply the one before.
  void few_rows(Range tiles, Range rows, const TileWorkspace& w) const {
    size_t slot = 0;
    TileOperands o = operands(pair_at(tiles, tiles.begin), piece_at(0), slot, w);
    for (size_t t = tiles.begin; t < tiles.end; t += 2) {
      const Range pair = pair_at(tiles, t);
      for (size_t begin = 0; begin < x_.steps; begin += x_.piece_steps) {
        const Range piece = piece_at(begin);
        const bool last = piece.end == x_.steps;
        const Range next_pair = last && t + 2 < tiles.end ? pair_at(tiles, t + 2) : pair;
        const Range next_piece = !last ? piece_at(piece.end) : t + 2 < tiles.end ? piece_at(0) : Range{};
        slot = 1 - slot;
        const TileOperands next = next_piece.end ? operands(next_pair, next_piece, slot, w, halves_) : TileOperands{};
        if (halves_) {
          const ExpandNext expand{&factors_, k_, next_pair, next_piece, {buffer(0, slot, w), buffer(1, slot, w)}};
          few_blocks(pair, rows, piece, o, expand, w);
          for (size_t i = piece.end - piece.begin; i < next_piece.end - next_piece.begin; ++i) expand(i);
        } else if (ready_) {
          const std::byte* second = o.weights[pair.end - pair.begin > 1];
          const PrefetchWeights ahead{o.weights[0], second, piece.begin * kTileBytes, x_.steps * kTileBytes};
          few_blocks(pair, rows, piece, o, ahead, w);
        } else {
          few_blocks(pair, rows, piece, o, Nothing{}, w);
        }
        o = next;
      }
      add_scaled(*w.unscaled);
      finish_rows(pair, rows, w);
    }
  }

  // All of few rows pass a piece of a pair of tiles; `meanwhile` is done beside the first block of them.
  template <class Meanwhile>
  void few_blocks(Range pair, Range rows, Range piece, const TileOperands& o, const Meanwhile& meanwhile,
                  const TileWorkspace& w) const {
    multiply(pair, rows, 0, piece, o, meanwhile, w.sums[0], *w.unscaled);
    for (size_t b = 1; b < blocks_of(rows); ++b) multiply(pair, rows, b, piece, o, Nothing{}, w.sums[b], *w.unscaled);
  }

  void many_rows(Range tiles, Range rows, const TileWorkspace& w) const {
    const size_t together = finished_tiles();
    for (size_t t = tiles.begin; t < tiles.end; t += together) {
      const Range group{t, tiles.end - t < together ? tiles.end : t + together};
      for (size_t begin = group.begin; begin < group.end; begin += kPanelTiles) {
        const Range part{begin, group.end - begin < kPanelTiles ? group.end : begin + kPanelTiles};
        panel(part, rows, w.sums + (begin - group.begin) / 2 * blocks_of(rows), w);
      }
      add_scaled(*w.unscaled);
      finish_rows(group, rows, w);
    }
  }

  // Sums go to `sums`: [pair of output tiles][block of rows].
  void panel(Range tiles, Range rows, TileSums<float>* sums, const TileWorkspace& w) const {
    const size_t blocks = blocks_of(rows);
    for (size_t begin = 0; begin < x_.steps; begin += x_.piece_steps) {
      const Range piece = piece_at(begin);
      for (size_t t = tiles.begin; t < tiles.end; t += 2) {
        const Range pair = pair_at(tiles, t);
        const TileOperands o = operands(pair, piece, 0, w);
        PrefetchNext next = next_of(tiles, t, blocks, piece);
        for (size_t b = 0; b < blocks; ++b) {
          multiply(pair, rows, b, piece, o, next, sums[(t - tiles.begin) / 2 * blocks + b], *w.unscaled);
          next.advance(piece.end - piece.begin);
        }
      }
    }
  }

  // What is prefetched while rows pass the pair of tiles at `tile`.
  PrefetchNext next_of(Range tiles, size_t tile, size_t blocks, Range piece) const {
    const size_t after = piece.end < x_.steps ? piece.end : 0;
    const bool last = tile + 2 >= tiles.end;
    const size_t next = !last ? tile + 2 : after ? tiles.begin : tiles.end;
    const size_t k = (last ? after : piece.begin) * Tiles::kStep, steps = piece.end - piece.begin;
    const size_t bytes = steps * kTileBytes / (halves_ ? 2 : 1);
    return {stored(next, k), stored(next + 1, k), bytes, round_up(ceil_div(bytes, blocks * steps), 64)};
  }

  // Adds a piece of K of a block of rows times a pair of tiles.
  template <class Meanwhile>
  void multiply(Range pair, Range rows, size_t block, Range piece, TileOperands o, const Meanwhile& meanwhile,
                TileSums<float>& acc, Unscaled& unscaled) const {
    const size_t row = rows.begin + block * kBlockRows, steps = piece.end - piece.begin;
    for (size_t r = 0; r < 2; ++r) o.x[r] = x_.at(row + r * kTileHeight, piece.begin);
    o.x_bytes = x_.tile_bytes();
    o.row_scales = x_.scales + piece.begin * Tiles::kStep / kQuantBlock * x_.rows + row;
    o.row_stride = x_.rows;
    o.rows = std::min(rows.end - row, kBlockRows);
    with_shape({rows.end - row > kTileHeight, pair.end - pair.begin > 1}, [&]<int R, int T>() {
      if (unscaled.shape != TileShape{R > 1, T > 1}) add_scaled(unscaled);
      add_steps<R, T>(Tiles{}, o, steps, piece.begin == 0, meanwhile, acc, unscaled);
    });
  }

  // Outputs of row i of a pass; `to` is where output `first` goes.
  void finish_row(const Epilogue& e, const Matrix& out, Range tiles, Range rows, size_t i, float* to, size_t first,
                  const TileWorkspace& w) const {
    const size_t blocks = blocks_of(rows), at = i % kBlockRows;
    const auto sum = [&](size_t tile) {
      const size_t t = tile - tiles.begin;
      return load(w.sums[t / 2 * blocks + i / kBlockRows][at / kTileHeight][t % 2] + at % kTileHeight * kLanes);
    };
    for (size_t tile = tiles.begin; tile < tiles.end; tile += e.branches) {
      const size_t column = tile / e.branches * kLanes, n = lanes_at(out, column);
      Vec y = activate(e.activation, before_activation(e, tile, n, sum(tile)));
      if (e.branches == 2) y = y * before_activation(e, tile + 1, n, sum(tile + 1));
      store_n(to + (column - first), add_residual(e, rows.begin + i, column, n, y), n);
    }
  }

  void finish_rows(Range tiles, Range rows, const TileWorkspace& w) const {
    if (epilogue_.tiles) return leave_rows(tiles, rows, w);
    const Epilogue e = epilogue_;  // copies: what they say stays in registers
    const Matrix out = out_;
    for (size_t row = rows.begin; row < rows.end; ++row)
      finish_row(e, out, tiles, rows, row - rows.begin, out.row<float>(row), 0, w);
  }

  // As the tiles that their reader multiplies: whole units, as `tiles` begin with one.
  void leave_rows(Range tiles, Range rows, const TileWorkspace& w) const {
    const Epilogue e = epilogue_;
    const Matrix out = out_;
    const PackedRows left = left_in(out);
    const size_t first = tiles.begin / e.branches * kLanes, past = tiles.end / e.branches * kLanes;
    const size_t end = past < out.width ? past : out.width;
    for (size_t row = rows.begin; row < rows.end; ++row) {
      alignas(64) float y[kPanelTiles * kLanes];
      finish_row(e, out, tiles, rows, row - rows.begin, y, first, w);
      for (size_t k = first; k < end; k += Tiles::kUnit)
        left.pack<Tiles>(row, k, y + (k - first), std::min(Tiles::kUnit, end - k));
    }
  }

  const Factors& factors_;
  const Epilogue& epilogue_;
  const Matrix& out_;
  const size_t k_;  // padded to 32, as weights are
  const bool few_, halves_, ready_;  // few rows; int4; weights that are tiles as they lie
  const PackedRows x_;
};

}  // namespace

bool amx_product(const Context& context, const Input& x, const Factors& factors, const Epilogue& epilogue,
                 const Matrix& out) {
  const Weight& weight = factors.weight;
  const size_t least = weight.dtype == DType::i4 ? kLeastInt4Rows : from_memory(weight) ? 1 : kLeastCachedRows;
  if (x.rows < least) return false;
  switch (weight.dtype) {
    case DType::bf16: TileProduct<Bf16Tiles>(context, x, factors, epilogue, out); return true;
    case DType::i8:
    case DType::i4: TileProduct<Int8Tiles>(context, x, factors, epilogue, out); return true;
    default: return false;
  }
}

bool leaves_tiles(const Context& context, const Call& writer, const Call& reader) {
  if (context.traced || reader.weights[op::linear::weight_norm]) return false;
  const Matrix& between = writer.outputs[op::linear::out_out];
  const DType first = writer.weights[op::linear::weight_weight].dtype;
  const DType second = reader.weights[op::linear::weight_weight].dtype;
  const auto integers = [](DType dtype) { return dtype == DType::i8 || dtype == DType::i4; };
  if (first == DType::bf16 && second == DType::bf16) return TileProduct<Bf16Tiles>::leaves(between);
  return integers(first) && integers(second) && TileProduct<Int8Tiles>::leaves(between);
}

}  // namespace ingot::cpu::INGOT_ISA

#endif

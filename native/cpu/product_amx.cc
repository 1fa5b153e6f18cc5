// Products on AMX tiles, in blocks of 32 rows by 32 outputs.
//
// Rows of x are packed tile after tile; weights are read as they lie (tile16x2, tile16x4), int4 is expanded first. Outputs
// pass in panels, and K in pieces: the weights of two output tiles over a piece stay in L1 while all rows pass, and the
// rows of a piece in L2 while a panel passes, which is asked for during the piece before. So rows are loaded as what L1 does
// not keep.
// What the next product alone reads is left as the tiles that it multiplies (ADR 0014).
#include "product_amx.h"

#if defined(INGOT_ISA_amx)

#include "product_amx_finish.h"

namespace ingot::cpu::INGOT_ISA {
namespace {

constexpr size_t kRowsInL2 = 512 << 10;  // bytes of rows that stay there from one panel to the next
constexpr size_t kFewRows = 64;          // up to here a step is bound by memory: weights are prefetched, in two streams
constexpr size_t kFewSteps = 8;          // of a piece of few rows
constexpr size_t kFewInt4Steps = 4;      // of int4, which is expanded and used at once
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
        x_(x.tiles ? left_in<Tiles>(x) : pack_rows<Tiles>(context, x, piece_steps(x))) {
    const size_t tiles = ceil_div(out.width, kLanes), threads = context.pool.threads();
    TileWorkspace* workspaces = context.scratch.take<TileWorkspace>(threads);
    for (size_t i = 0; i < threads; ++i) workspaces[i] = workspace(context);
    const size_t products = x.rows * k_ * out.width * epilogue.branches;
    const size_t run = few_ ? kWholePart : kPanelTiles;
    const size_t unit = epilogue.tiles ? Tiles::kUnit / kLanes : 1;
    split(context, tiles, unit, x.rows, kBlockRows, products, run, [&](Range outputs, Range rows, unsigned thread) {
      TileLease lease;
      lease.set_rows(x_.height);
      const Range range{outputs.begin * epilogue.branches, outputs.end * epilogue.branches};
      if (few_) few_rows(range, rows, workspaces[thread]);
      else many_rows(range, rows, workspaces[thread]);
    });
  }

  // Whether rows of a register can be left there as tiles.
  static bool leaves(const Matrix& m) {
    const bool dense = m.stride == m.width * sizeof(float) && m.width % Tiles::kStep == 0;
    return dense && m.rows > kFewRows && left_in<Tiles>(m).bytes() <= m.rows * m.stride;
  }

 private:
  // Of few rows that are one block all of K, for nothing is read again.
  size_t piece_steps(const Input& x) const {
    if (!few_) return Tiles::kPieceSteps;
    if (halves_) return kFewInt4Steps;
    return ready_ && x.rows <= kBlockRows ? k_ / Tiles::kStep : kFewSteps;
  }

  static constexpr size_t kColumnBytes = kTileBytes / Tiles::kStep;  // of one k of 16 outputs

  // Output tiles that are finished together.
  size_t finished_tiles() const { return few_ ? 2 : kPanelTiles * epilogue_.branches; }
  static size_t blocks_of(Range rows) { return ceil_div(rows.end - rows.begin, kBlockRows); }

  TileWorkspace workspace(const Context& context) const {
    const size_t blocks = blocks_of(pass_at({0, x_.rows}, 0));
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
      finish_panel<Tiles>(epilogue_, out_, {w.sums, pair, rows});
    }
  }

  // All of few rows pass a piece of a pair of tiles; `meanwhile` is done beside the first block of them.
  template <class Meanwhile>
  void few_blocks(Range pair, Range rows, Range piece, const TileOperands& o, const Meanwhile& meanwhile,
                  const TileWorkspace& w) const {
    multiply(pair, rows, 0, piece, o, meanwhile, w.sums[0], *w.unscaled);
    for (size_t b = 1; b < blocks_of(rows); ++b) multiply(pair, rows, b, piece, o, Nothing{}, w.sums[b], *w.unscaled);
  }

  // Many rows pass a panel of tiles, kPassRows of them after the others.
  void many_rows(Range tiles, Range rows, const TileWorkspace& w) const {
    const size_t together = finished_tiles();
    for (size_t t = tiles.begin; t < tiles.end; t += together) {
      const Range panel{t, tiles.end - t < together ? tiles.end : t + together};
      for (size_t row = rows.begin; row < rows.end; row += Tiles::kPassRows) {
        const Range pass = pass_at(rows, row);
        const bool last = pass.end == rows.end;
        add_panel(panel, pass, last ? panel.end : panel.begin, pass_at(rows, last ? rows.begin : pass.end), w);
        add_scaled(*w.unscaled);
        finish_panel<Tiles>(epilogue_, out_, {w.sums, panel, pass});
      }
    }
  }
  static Range pass_at(Range rows, size_t row) { return {row, std::min(rows.end, row + Tiles::kPassRows)}; }

  // All of K of a panel. After it come the output tiles from `next_tile` on, and `next_rows`.
  void add_panel(Range tiles, Range rows, size_t next_tile, Range next_rows, const TileWorkspace& w) const {
    const size_t blocks = blocks_of(rows), pairs = ceil_div(tiles.end - tiles.begin, 2);
    for (size_t begin = 0; begin < x_.steps; begin += x_.piece_steps) {
      const Range piece = piece_at(begin);
      const size_t steps = piece.end - piece.begin, after = piece.end < x_.steps ? piece.end : 0;
      PrefetchNext next;
      next.rows = rows_at(after ? rows : next_rows, piece_at(after)).over(pairs * blocks * steps);
      for (size_t t = tiles.begin; t < tiles.end; t += 2) {
        const Range pair = pair_at(tiles, t);
        const TileOperands o = operands(pair, piece, 0, w);
        next.weights = t + 2 < tiles.end ? weights_at(t + 2, piece)
                                         : weights_at(after ? tiles.begin : next_tile, piece_at(after));
        next.weights = next.weights.over(blocks * steps);
        for (size_t b = 0; b < blocks; ++b) {
          TileSums<float>& acc = w.sums[(t - tiles.begin) / 2 * blocks + b];
          if (next.rows.left) multiply(pair, rows, b, piece, o, next, acc, *w.unscaled);
          else multiply(pair, rows, b, piece, o, next.weights, acc, *w.unscaled);
          next.advance(steps);
        }
      }
    }
  }

  // What is asked for: a piece of the weights of a pair of tiles; and of rows, unless L2 holds all of them.
  Ahead<2> weights_at(size_t tile, Range piece) const {
    const size_t from = piece.begin * Tiles::kStep, bytes = (piece.end - piece.begin) * kTileBytes;
    return {{stored(tile, from), stored(tile + 1, from)}, halves_ ? bytes / 2 : bytes};
  }
  Ahead<1> rows_at(Range rows, Range piece) const {
    const size_t step_bytes = round_up(rows.end - rows.begin, kTileHeight) * kTileRowBytes;
    if (step_bytes * x_.steps <= kRowsInL2) return {};
    return {{x_.at(rows.begin, piece.begin)}, step_bytes * (piece.end - piece.begin)};
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

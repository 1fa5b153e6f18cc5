// x . weight^T, the product behind linear and logits.
#pragma once
#include "math.h"
#include "norm.h"
#include "parallel.h"

namespace ingot::cpu::INGOT_ISA {

// x of a product: rows that are RMS-normalised first where `norm` is given.
struct Input : Matrix {
  const float* norm = nullptr;
  float eps = 0, offset = 0;
  bool tiles = false;  // they lie there as AMX tiles (PackedRows), as their writer left them
};

// What happens to a finished sum: residual + activation(softcap(scale * (sum + bias))).
struct Epilogue {
  const float* bias = nullptr;
  float scale = 1, softcap = 0;
  Activation activation = Activation::none;
  Matrix residual = {};
  uint32_t branches = 1;  // tiles an output tile takes; 2: of a gate, then of what it multiplies
  bool tiles = false;     // outputs are left as the AMX tiles that their reader multiplies
};

// A weight and what scales it: int8 has `scales`, int4 `sub_scales` too.
struct Factors { const Weight &weight, &scales, &sub_scales; };

// Whether a weight is taken to come from memory for each step: models of smaller ones lie in caches as a whole.
inline bool from_memory(const Weight& weight) {
  return byte_size(weight.dtype, size_t{weight.rows} * weight.cols) >= size_t{1} << 20;
}

// Rows of an input as the product reads them, made when they are asked for. `sharing` consecutive rows take turns with
// one buffer: whoever packs them uses each before the next.
class InputRows {
 public:
  InputRows(const Context& context, const Input& x, size_t sharing)
      : x_(x), sharing_(sharing),
        buffers_(x.norm ? context.scratch.take<float>(ceil_div(x.rows, sharing) * x.width) : nullptr) {}

  const float* operator[](size_t r) const {
    const float* row = x_.row<float>(r);
    if (!x_.norm) return row;
    float* buffer = buffers_ + r / sharing_ * x_.width;
    rms_normalize(row, x_.norm, buffer, x_.width, x_.eps, x_.offset);
    return buffer;
  }

 private:
  const Input& x_;
  size_t sharing_;
  float* buffers_;
};

// out = epilogue(x . weight^T). weight is (branches * out.width, x.width) in tile16 (f32, f16), tile16x2 (bf16),
// tile16x4 (int8) or tile16x8 (int4).
//
// The order of every sum is fixed, whatever the blocking, the batch, the threads and the instruction set:
// - Float weights: each block of 32 along K is summed as its even and its odd elements, in order and fused; the two
//   sums are added, and then added to the running sum. That is what one AMX bf16 tile product computes (Intel SDM,
//   TDPBF16PS), so both agree bit for bit. With bf16 weights, x is rounded to bf16 first.
// - int8 and int4 weights: x is quantised to int8 by row and block of 256 (scale = max|x| / 127); the integer sum of a
//   block is exact in any order, int4 weights taken times their sub-scales, and fused into the running sum with the
//   product of both scales.
void product(const Context&, const Input& x, const Factors& factors, const Epilogue&, const Matrix& out);

// Of n of a tile's 16 weight rows, scale * (sum + bias).
inline Vec before_cap(const Epilogue& e, size_t tile, size_t n, Vec sum) {
  return (e.bias ? sum + load_n(e.bias + tile * kLanes, n) : sum) * set(e.scale);
}
// What the activation takes.
inline Vec before_activation(const Epilogue& e, size_t tile, size_t n, Vec sum) {
  const Vec y = before_cap(e, tile, n, sum);
  return e.softcap > 0 ? softcap(y, e.softcap) : y;
}

inline size_t lanes_at(const Matrix& out, size_t column) {
  return out.width - column < kLanes ? out.width - column : kLanes;
}

inline Vec add_residual(const Epilogue& e, size_t row, size_t column, size_t n, Vec y) {
  return e.residual ? load_n(e.residual.row<float>(row) + column, n) + y : y;
}

// Writes the outputs of one row and one tile of 16 weight rows. Of two branches, a tile of the gate waits in `out` for
// the next tile, which the same thread finishes after it.
static_assert(kBranchRun == kLanes);
inline void finish(const Epilogue& e, const Matrix& out, size_t row, size_t tile, Vec sum) {
  const size_t column = tile / e.branches * kLanes, n = lanes_at(out, column);
  float* to = out.row<float>(row) + column;
  const Vec y = before_activation(e, tile, n, sum);
  if (e.branches == 2 && tile % 2 == 0) store_n(to, activate(e.activation, y), n);
  else store_n(to, add_residual(e, row, column, n, e.branches == 2 ? load_n(to, n) * y : activate(e.activation, y)), n);
}

// Multiply-adds below which a fork costs more than it saves.
inline constexpr size_t kForkProducts = 65536;

// Calls body(tiles of `out`, rows, thread): splits them over the pool by tiles, so that a weight is read once, and by rows
// too where tiles are few; `unit` tiles stay together. A thread takes `run` tiles at a time, and then of what others have
// left; or its part at once, in one stream, where memory bounds.
inline constexpr size_t kWholePart = 0;
template <class Body>
void split(const Context& context, size_t tiles, size_t unit, size_t rows, size_t row_grain, size_t products, size_t run,
           const Body& body) {
  const size_t threads = products < kForkProducts ? 1 : context.pool.threads();
  const size_t grain = std::max<size_t>(unit, tiles >= threads * 16 ? 4 : tiles >= threads * 4 ? 2 : 1);
  const size_t chunks = ceil_div(tiles, grain);
  const size_t most = ceil_div(rows, row_grain), wanted = chunks >= threads ? 1 : ceil_div(2 * threads, chunks);
  const size_t parts = wanted < most ? wanted : most;
  const auto piece = [&](size_t begin, size_t end, unsigned thread) {
    for (size_t part = 0; part < parts; ++part) {
      // Units are (part, chunk), chunk fastest: the run of chunks of this part within [begin, end).
      const size_t first = part * chunks, last = first + chunks;
      const size_t from = begin > first ? begin : first, to = end < last ? end : last;
      if (from >= to) continue;
      const size_t tile_end = (to - first) * grain, row_end = most * (part + 1) / parts * row_grain;
      body(Range{(from - first) * grain, tile_end < tiles ? tile_end : tiles},
           Range{most * part / parts * row_grain, row_end < rows ? row_end : rows}, thread);
    }
  };
  if (threads == 1) piece(0, chunks * parts, 0);
  else if (run == kWholePart) context.pool.parallel(chunks * parts, 1, piece);
  else each_shared(context, chunks * parts, ceil_div(run, grain), piece);
}

}  // namespace ingot::cpu::INGOT_ISA

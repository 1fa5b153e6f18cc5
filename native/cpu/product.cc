#include "product.h"

#include <type_traits>

#include "expand.h"
#include "product_amx.h"
#include "product_tiles.h"
#include "quantize.h"

namespace ingot::cpu::INGOT_ISA {
namespace {

// Calls f with R as a constant.
template <class F>
void with_rows(size_t rows, const F& f) {
  switch (rows) {
    case 1: return f.template operator()<1>();
    case 2: return f.template operator()<2>();
    case 3: return f.template operator()<kPanel >= 3 ? 3 : 1>();
    case 4: return f.template operator()<kPanel >= 4 ? 4 : 1>();
    case 5: return f.template operator()<kPanel >= 5 ? 5 : 1>();
    case 6: return f.template operator()<kPanel >= 6 ? 6 : 1>();
    case 7: return f.template operator()<kPanel >= 7 ? 7 : 1>();
    case 8: return f.template operator()<kPanel >= 8 ? 8 : 1>();
  }
}

// Where the sums of a product go, whose tiles count from `first` of the weight's.
struct Outputs {
  const Epilogue& epilogue;
  const Matrix& out;
  bool many;  // rows, more than a panel
  size_t first = 0;

  void finish_sum(size_t row, size_t tile, Vec sum) const { finish(epilogue, out, row, first + tile, sum); }
  // Asks for what finishing reads and writes: of many rows, each is on a page of its own.
  void ask_for(size_t row, size_t tile) const {
    if (!many) return;
    const size_t column = (first + tile) / epilogue.branches * kLanes;
    prefetch<kIntoL2>(out.row<float>(row) + column);
    if (epilogue.residual) prefetch<kIntoL2>(epilogue.residual.row<float>(row) + column);
  }
};

// Tiles [begin, end) of R rows, T at a time while that many are left. On its own: inlined, its sums would share registers
// with what surrounds it.
template <int R, int T, class Product>
[[gnu::noinline]] void sweep(const Product& product, const Outputs& outputs, size_t row, size_t begin, size_t end) {
  for (; end - begin >= size_t(T); begin += T) {
    for (int r = 0; r < R; ++r)
      for (int t = 0; t < T; ++t) outputs.ask_for(row + r, begin + t);
    Vec acc[R][T];
    product.template block<R, T>(row, begin, acc);
    for (int r = 0; r < R; ++r)
      for (int t = 0; t < T; ++t) outputs.finish_sum(row + r, begin + t, acc[r][t]);
  }
  if constexpr (T > 1) sweep<R, T / 2>(product, outputs, row, begin, end);
}

// Tiles [begin, end) of a range of rows, a panel at a time.
template <bool Streams, class Product>
void run_rows(const Product& product, Range rows, size_t begin, size_t end, const Outputs& outputs) {
  for (size_t row = rows.begin; row < rows.end; row += kPanel) {
    with_rows(rows.end - row < kPanel ? rows.end - row : kPanel, [&]<int R>() {
      sweep<R, Streams ? streams_of(R) : tiles_of(R)>(product, outputs, row, begin, end);
    });
  }
}

// `streams`: weights come from memory, so that each tile is a stream of its own.
template <class Product>
void run_blocks(const Context& context, const Product& product, bool streams, const Epilogue& epilogue, size_t rows,
                const Matrix& out) {
  const Outputs outputs{epilogue, out, rows > kPanel};
  const size_t group = outputs.many ? 2 : 4;  // tiles that stay in cache while all rows pass
  const size_t branches = epilogue.branches, tiles = ceil_div(out.width, kLanes);
  split(context, tiles, 1, rows, kPanel, rows * product.k * out.width * branches, kWholePart,
        [&](Range part_tiles, Range part, unsigned) {
          const Range tiles{part_tiles.begin * branches, part_tiles.end * branches};
          for (size_t t = tiles.begin; t < tiles.end; t += group) {
            const size_t end = tiles.end - t < group ? tiles.end : t + group;
            if (streams) run_rows<true>(product, part, t, end, outputs);
            else run_rows<false>(product, part, t, end, outputs);
          }
        });
}

// Calls body(first row, rows, panel width) for each panel of x, in parallel.
template <class Body>
void each_panel(const Context& context, const Matrix& x, const Body& body) {
  each_row(context, ceil_div(x.rows, kPanel), size_t(kPanel) * x.width, [&](size_t panel) {
    const size_t row = panel * kPanel;
    body(row, x.rows - row < kPanel ? x.rows - row : kPanel);
  });
}

// Packs x in panels of k >= x.width elements, padded with zeros; rounded to bf16 for bf16 weights.
template <bool Round>
const float* pack_floats(const Context& context, const Input& x, size_t k) {
  float* panels = context.scratch.take<float>(x.rows * k);
  const InputRows rows(context, x, kPanel);
  each_panel(context, x, [&](size_t row, size_t width) {
    float* panel = panels + row * k;
    for (size_t r = 0; r < width; ++r) {
      const float* from = rows[row + r];
      for (size_t c = 0; c < k; c += kLanes) {
        float lanes[kLanes];
        const size_t left = c < x.width ? x.width - c : 0;
        const Vec v = left ? load_n(from + c, left < kLanes ? left : kLanes) : zero();
        store(lanes, Round ? round_bf16(v) : v);
        const size_t n = k - c < kLanes ? k - c : kLanes;
        for (size_t i = 0; i < n; ++i) panel[(c + i) * width + r] = lanes[i];
      }
    }
  });
  return panels;
}

template <class Weights>
void float_product(const Context& context, const Input& x, const Weight& weight, const Epilogue& epilogue,
                   const Matrix& out) {
  const size_t k = round_up(x.width, kLayouts[size_t(weight.layout)].align);
  constexpr bool round = std::is_same_v<Weights, Bf16Weights>;
  const FloatProduct<Weights> product{pack_floats<round>(context, x, k), weight.as<typename Weights::Element>(), k};
  run_blocks(context, product, x.rows <= kPanel && from_memory(weight), epilogue, x.rows, out);
}

// x as int8: panels of quads, with the scales of blocks and the offsets of spans.
struct Quantized {
  const int8_t* panels;
  const float* scales;
  const int32_t* offsets;
};

template <class Weights>
Quantized quantize_panels(const Context& context, const Input& x, size_t k) {
  const size_t blocks = ceil_div(k, kQuantBlock), spans = ceil_div(k, Weights::kSpan);
  int8_t* panels = context.scratch.take<int8_t>(x.rows * k);
  float* scales = context.scratch.take<float>(x.rows * blocks);
  int32_t* offsets = context.scratch.take<int32_t>(x.rows * spans);
  const InputRows rows(context, x, kPanel);
  each_panel(context, x, [&](size_t row, size_t width) {
    int8_t* panel = panels + row * k;
    int32_t* offset = offsets + row * spans;
    std::memset(panel, 0, width * k);
    for (size_t r = 0; r < width; ++r) {
      Ints sum = set_int(0);
      const auto emit = [&](size_t i, Ints q) {
        int8_t quads[kLanes];
        store_i8(quads, q);
        for (size_t quad = 0; quad < 4; ++quad) std::memcpy(panel + ((i / 4 + quad) * width + r) * 4, quads + quad * 4, 4);
        sum = sum + q;
        if ((i + kLanes) % Weights::kSpan != 0 && i + kLanes < x.width) return;
        offset[i / Weights::kSpan * width + r] = -Weights::kOffset * reduce_add(sum);
        sum = set_int(0);
      };
      quantize_row(rows[row + r], x.width, emit,
                   [&](size_t block, float scale) { scales[row * blocks + block * width + r] = scale; });
    }
  });
  return {panels, scales, offsets};
}

template <class Weights>
void integer_product(const Context& context, const Input& x, const Factors& factors, const Epilogue& epilogue,
                     const Matrix& out) {
  const size_t k = round_up(x.width, kQuantGroup);
  const Quantized q = quantize_panels<Weights>(context, x, k);
  const IntegerProduct<Weights> product{q.panels,
                                        q.scales,
                                        q.offsets,
                                        factors.weight.as<typename Weights::Element>(),
                                        factors.scales.as<uint16_t>(),
                                        factors.sub_scales.as<int8_t>(),
                                        k};
  const bool streams = from_memory(factors.weight) && (x.rows <= kPanel || product.kSubScaled);
  run_blocks(context, product, streams, epilogue, x.rows, out);
}

// Up to here int4 weights are unpacked for each panel of rows; beyond, expanding them once costs less.
constexpr size_t kFewInt4Rows = 3 * kPanel;

// int4 weights for many rows: expanded to int8 once, a few tiles at a time.
void expanded_product(const Context& context, const Input& x, const Factors& factors, const Epilogue& epilogue,
                      const Matrix& out) {
  constexpr size_t kTiles = 2;
  const size_t k = round_up(x.width, kQuantGroup), tile_bytes = k * kLanes, blocks = ceil_div(k, kQuantBlock);
  const Quantized q = quantize_panels<Int8Weights>(context, x, k);
  int8_t* buffers = context.scratch.take<int8_t>(context.pool.threads() * kTiles * tile_bytes);
  const size_t branches = epilogue.branches;
  const auto piece = [&](Range outputs, Range rows, unsigned thread) {
    const Range tiles{outputs.begin * branches, outputs.end * branches};
    int8_t* buffer = buffers + thread * kTiles * tile_bytes;
    for (size_t t = tiles.begin; t < tiles.end; t += kTiles) {
      const size_t count = tiles.end - t < kTiles ? tiles.end - t : kTiles;
      for (size_t i = 0; i < count; ++i) expand_tile(factors, k, t + i, {0, k}, buffer + i * tile_bytes);
      // Tiles of the product count from t: buffer, scales and outputs begin there.
      const IntegerProduct<CachedWeights> product{
          q.panels, q.scales, q.offsets, buffer, factors.scales.as<uint16_t>() + t * blocks * kLanes, nullptr, k};
      run_rows<false>(product, rows, 0, count, Outputs{epilogue, out, true, t});
    }
  };
  split(context, ceil_div(out.width, kLanes), 1, x.rows, kPanel, x.rows * k * out.width * branches, kWholePart, piece);
}

}  // namespace

void product(const Context& context, const Input& x, const Factors& factors, const Epilogue& epilogue,
             const Matrix& out) {
  if (x.rows == 0) return;
#if defined(INGOT_ISA_amx)
  if (amx_product(context, x, factors, epilogue, out)) return;
#endif
  switch (factors.weight.dtype) {
    case DType::f32: return float_product<F32Weights>(context, x, factors.weight, epilogue, out);
    case DType::f16: return float_product<F16Weights>(context, x, factors.weight, epilogue, out);
    case DType::bf16: return float_product<Bf16Weights>(context, x, factors.weight, epilogue, out);
    case DType::i8: return integer_product<Int8Weights>(context, x, factors, epilogue, out);
    case DType::i4:
      return x.rows <= kFewInt4Rows ? integer_product<Int4Weights>(context, x, factors, epilogue, out)
                                    : expanded_product(context, x, factors, epilogue, out);
    case DType::e4m3:  // the kernel table does not list it
    case DType::i32: return;  // not a weight's type
  }
}

}  // namespace ingot::cpu::INGOT_ISA

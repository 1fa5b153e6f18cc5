#include "product.h"

#include <type_traits>

#include "product_amx.h"
#include "product_tiles.h"

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

// Tiles [begin, end) of R rows, T at a time while that many are left.
template <int R, int T, class Product>
void sweep(const Product& product, const Epilogue& epilogue, const Matrix& out, size_t row, size_t begin, size_t end) {
  for (; end - begin >= size_t(T); begin += T) {
    Vec acc[R][T];
    product.template block<R, T>(row, begin, acc);
    for (int r = 0; r < R; ++r)
      for (int t = 0; t < T; ++t) finish(epilogue, out, row + r, begin + t, acc[r][t]);
  }
  if constexpr (T > 1) sweep<R, T / 2>(product, epilogue, out, row, begin, end);
}

template <class Product>
void run_blocks(const Context& context, const Product& product, const Epilogue& epilogue, size_t rows,
                const Matrix& out) {
  const size_t group = rows <= kPanel ? 4 : 2;  // tiles that stay in cache while all rows pass
  split(context, ceil_div(out.width, kLanes), rows, kPanel, rows * product.k * out.width, [&](Range tiles, Range part) {
    for (size_t t = tiles.begin; t < tiles.end; t += group) {
      const size_t end = tiles.end - t < group ? tiles.end : t + group;
      for (size_t row = part.begin; row < part.end; row += kPanel) {
        with_rows(part.end - row < kPanel ? part.end - row : kPanel, [&]<int R>() {
          sweep<R, tiles_of(R)>(product, epilogue, out, row, t, end);
        });
      }
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
const float* pack_floats(const Context& context, const Matrix& x, size_t k) {
  float* panels = context.scratch.take<float>(x.rows * k);
  each_panel(context, x, [&](size_t row, size_t width) {
    float* panel = panels + row * k;
    for (size_t r = 0; r < width; ++r) {
      const float* from = x.row<float>(row + r);
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
void float_product(const Context& context, const Matrix& x, const Weight& weight, const Epilogue& epilogue,
                   const Matrix& out) {
  const size_t k = round_up(x.width, kLayouts[size_t(weight.layout)].align);
  constexpr bool round = std::is_same_v<Weights, Bf16Weights>;
  const FloatProduct<Weights> product{pack_floats<round>(context, x, k), weight.as<typename Weights::Element>(), k};
  run_blocks(context, product, epilogue, x.rows, out);
}

// Quantises a group of 32, of which `count` exist: values to q, in quads `stride` quads apart; returns the scale.
float quantize_group(const float* x, size_t count, int8_t* q, size_t stride, int32_t& sum) {
  const Vec low = load_n(x, count < kLanes ? count : kLanes);
  const Vec high = count > kLanes ? load_n(x + kLanes, count - kLanes) : zero();
  const float most = reduce_max(max(abs(low), abs(high)));
  const Vec inverse = set(most == 0 ? 0.0f : 127.0f / most);
  int32_t values[kQuantGroup];
  const Vec halves[2] = {low, high};
  for (size_t h = 0; h < 2; ++h) {
    const Vec scaled = max(halves[h] * inverse, set(-127));
    const Ints rounded = round_int(if_less(scaled, set(127), scaled, set(127)));
    std::memcpy(values + h * kLanes, &rounded, sizeof rounded);
  }
  sum = 0;
  for (size_t i = 0; i < kQuantGroup; ++i) {
    q[i / 4 * stride * 4 + i % 4] = int8_t(values[i]);
    sum += values[i];
  }
  return most / 127.0f;
}

template <class Weights>
void integer_product(const Context& context, const Matrix& x, const Weight& weight, const Weight& scales,
                     const Epilogue& epilogue, const Matrix& out) {
  const size_t groups = ceil_div(x.width, kQuantGroup), k = groups * kQuantGroup;
  int8_t* panels = context.scratch.take<int8_t>(x.rows * k);
  float* row_scales = context.scratch.take<float>(x.rows * groups);
  int32_t* row_offsets = context.scratch.take<int32_t>(x.rows * groups);
  each_panel(context, x, [&](size_t row, size_t width) {
    for (size_t r = 0; r < width; ++r) {
      for (size_t g = 0; g < groups; ++g) {
        const size_t begin = g * kQuantGroup, left = x.width - begin, at = row * groups + g * width + r;
        int32_t sum;
        row_scales[at] = quantize_group(x.row<float>(row + r) + begin, left < kQuantGroup ? left : kQuantGroup,
                                        panels + row * k + (g * 8 * width + r) * 4, width, sum);
        row_offsets[at] = -Weights::kOffset * sum;
      }
    }
  });
  const IntegerProduct<Weights> product{panels, row_scales, row_offsets, weight.as<typename Weights::Element>(),
                                        scales.as<uint16_t>(), k};
  run_blocks(context, product, epilogue, x.rows, out);
}

}  // namespace

void product(const Context& context, const Matrix& x, const Weight& weight, const Weight& scales,
             const Epilogue& epilogue, const Matrix& out) {
  if (x.rows == 0) return;
  switch (weight.dtype) {
    case DType::f32: return float_product<F32Weights>(context, x, weight, epilogue, out);
    case DType::f16: return float_product<F16Weights>(context, x, weight, epilogue, out);
    case DType::bf16:
#if defined(INGOT_ISA_amx)
      if (x.rows >= kAmxRows) return amx_product(context, x, weight, epilogue, out);
#endif
      return float_product<Bf16Weights>(context, x, weight, epilogue, out);
    case DType::i8: return integer_product<Int8Weights>(context, x, weight, scales, epilogue, out);
    case DType::i4: return integer_product<Int4Weights>(context, x, weight, scales, epilogue, out);
    case DType::i32: return;  // not a weight's type
  }
}

}  // namespace ingot::cpu::INGOT_ISA

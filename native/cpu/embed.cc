#include "parallel.h"

namespace ingot::cpu::INGOT_ISA {
namespace {

// Where row `row` of a tiled matrix starts: element k is (k / pack) * 16 * pack + k % pack further.
size_t row_start(const Weight& w, size_t row) {
  const LayoutDef& layout = kLayouts[size_t(w.layout)];
  return row / kLanes * kLanes * round_up(w.cols, layout.align) + row % kLanes * layout.pack;
}
template <class Element>
const Element* tiled_row(const Weight& w, size_t row) { return w.as<Element>() + row_start(w, row); }

void gather_tiled(const Weight& table, const Weight& scales, size_t row, float* out) {
  const size_t width = table.cols;
  switch (table.dtype) {
    case DType::f32: {
      const float* x = tiled_row<float>(table, row);
      for (size_t k = 0; k < width; ++k) out[k] = x[k * kLanes];
      return;
    }
    case DType::f16: {
      const uint16_t* x = tiled_row<uint16_t>(table, row);
      for (size_t k = 0; k < width; ++k) out[k] = half_to_float(x[k * kLanes]);
      return;
    }
    case DType::bf16: {
      const uint16_t* x = tiled_row<uint16_t>(table, row);
      for (size_t k = 0; k < width; ++k) out[k] = as<float>(uint32_t(x[k / 2 * kLanes * 2 + k % 2]) << 16);
      return;
    }
    case DType::i8: {
      const int8_t* x = tiled_row<int8_t>(table, row);
      const uint16_t* scale = tiled_row<uint16_t>(scales, row);
      for (size_t k = 0; k < width; ++k) {
        out[k] = float(x[k / 4 * kLanes * 4 + k % 4]) * half_to_float(scale[k / kQuantBlock * kLanes]);
      }
      return;
    }
    case DType::i4:  // the kernel table lists none of these
    case DType::e4m3:
    case DType::i32: return;
  }
}

}  // namespace

void embed(const Context& context, const Call& call) {
  const auto& p = call.as<op::embed::Params>();
  const Matrix& out = call.outputs[op::embed::out_out];
  const Weight& table = call.weights[op::embed::weight_table];
  const Weight& scales = call.weights[op::embed::weight_scales];
  const float* positions = call.weights[op::embed::weight_positions].as<float>();
  const float* types = call.weights[op::embed::weight_types].as<float>();
  each_row(context, out.rows, p.width, [&](size_t t) {
    float* y = out.row<float>(t);
    gather_tiled(table, scales, size_t(context.step.token_ids[t]), y);
    for (size_t k = 0; k < p.width; ++k) y[k] *= p.scale;
    if (positions) {
      const size_t at = size_t(context.step.positions[t]) + p.position_offset, last = p.positions - 1;
      const float* x = positions + (at < last ? at : last) * p.width;
      for (size_t k = 0; k < p.width; ++k) y[k] += x[k];
    }
    if (types) for (size_t k = 0; k < p.width; ++k) y[k] += types[k];
  });
}

}  // namespace ingot::cpu::INGOT_ISA

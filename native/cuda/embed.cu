#include "pointwise.h"
#include "repack.h"

namespace ingot::cuda {
namespace {

// Element (row, column) of the table, dequantised.
struct Table {
  const std::byte* data;
  DType dtype;
  uint32_t leading;
  const __half* scales;  // (rows, blocks), of int8
  uint32_t blocks;

  __device__ float at(size_t row, uint32_t column) const {
    const size_t index = row * leading + column;
    switch (dtype) {
      case DType::bf16: return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(data)[index]);
      case DType::f16: return __half2float(reinterpret_cast<const __half*>(data)[index]);
      case DType::i8:
        return float(reinterpret_cast<const int8_t*>(data)[index]) *
               __half2float(scales[row * blocks + column / kQuantBlock]);
      default: return reinterpret_cast<const float*>(data)[index];
    }
  }
};

}  // namespace

cudaError_t embed(const Context& context, const Call& call) {
  const auto& p = call.as<op::embed::Params>();
  const Weight& table = call.weights[op::embed::weight_table];
  const Weight& scales = call.weights[op::embed::weight_scales];
  const Table rows{table.data, table.dtype, leading_dimension(table.cols, false), scales.as<__half>(), scales.cols};
  const float* positions = call.weights[op::embed::weight_positions].as<float>();
  const float* types = call.weights[op::embed::weight_types].as<float>();
  const int32_t *ids = context.step.token_ids, *at = context.step.positions;
  const uint32_t width = p.width, offset = p.position_offset, last = p.positions - 1;
  const float scale = p.scale;
  const auto value = [=] __device__(size_t t, uint32_t c) {
    float y = rows.at(size_t(ids[t]), c) * scale;
    if (positions) y += positions[size_t(min(uint32_t(at[t]) + offset, last)) * width + c];
    return types ? y + types[c] : y;
  };
  return launch_pointwise(context, call.outputs[op::embed::out_out], width, value);
}

}  // namespace ingot::cuda

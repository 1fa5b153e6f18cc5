#include "norm.h"
#include "parallel.h"

namespace ingot::cpu::INGOT_ISA {

void rms_norm(const Context& context, const Call& call) {
  const auto& p = call.as<op::rms_norm::Params>();
  const Matrix &x = call.inputs[op::rms_norm::in_x], &out = call.outputs[op::rms_norm::out_out];
  const float* weight = call.weights[op::rms_norm::weight_weight].as<float>();
  each_row(context, size_t(x.rows) * p.count, p.width, [&](size_t i) {
    const size_t row = i / p.count, column = i % p.count * p.width;
    rms_normalize(x.row<float>(row) + column, weight, out.row<float>(row) + column, p.width, p.eps, p.weight_offset);
  });
}

}  // namespace ingot::cpu::INGOT_ISA

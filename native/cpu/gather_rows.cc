#include <cstring>

#include "parallel.h"

namespace ingot::cpu::INGOT_ISA {

void gather_rows(const Context& context, const Call& call) {
  const auto& p = call.as<op::gather_rows::Params>();
  const Matrix &x = call.inputs[op::gather_rows::in_x], &out = call.outputs[op::gather_rows::out_out];
  each_row(context, out.rows, p.width, [&](size_t r) {
    std::memcpy(out.row<float>(r), x.row<float>(size_t(context.step.row_token[r])), p.width * sizeof(float));
  });
}

}  // namespace ingot::cpu::INGOT_ISA

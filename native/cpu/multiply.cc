#include "parallel.h"

namespace ingot::cpu::INGOT_ISA {

void multiply(const Context& context, const Call& call) {
  const auto& p = call.as<op::multiply::Params>();
  const Matrix &x = call.inputs[op::multiply::in_x], &y = call.inputs[op::multiply::in_y];
  const Matrix& out = call.outputs[op::multiply::out_out];
  each_vector(context, out.rows, p.width, [&](size_t r, size_t c, size_t n) {
    store_n(out.row<float>(r) + c, load_n(x.row<float>(r) + c, n) * load_n(y.row<float>(r) + c, n), n);
  });
}

}  // namespace ingot::cpu::INGOT_ISA

#include "parallel.h"

namespace ingot::cpu::INGOT_ISA {

void residual(const Context& context, const Call& call) {
  const auto& p = call.as<op::residual::Params>();
  const Matrix &x = call.inputs[op::residual::in_x], &y = call.inputs[op::residual::in_y];
  const Matrix& out = call.outputs[op::residual::out_out];
  each_vector(context, out.rows, p.width, [&](size_t r, size_t c, size_t n) {
    const Vec scaled = set(p.scale) * load_n(y.row<float>(r) + c, n);
    store_n(out.row<float>(r) + c, load_n(x.row<float>(r) + c, n) + scaled, n);
  });
}

}  // namespace ingot::cpu::INGOT_ISA

#include "math.h"
#include "parallel.h"

namespace ingot::cpu::INGOT_ISA {

void glu(const Context& context, const Call& call) {
  const auto& p = call.as<op::glu::Params>();
  const Matrix &gate = call.inputs[op::glu::in_gate], &up = call.inputs[op::glu::in_up];
  const Matrix& out = call.outputs[op::glu::out_out];
  each_vector(context, out.rows, p.width, [&](size_t r, size_t c, size_t n) {
    const Vec g = activate(Activation(p.activation), load_n(gate.row<float>(r) + c, n));
    store_n(out.row<float>(r) + c, g * load_n(up.row<float>(r) + c, n), n);
  });
}

}  // namespace ingot::cpu::INGOT_ISA

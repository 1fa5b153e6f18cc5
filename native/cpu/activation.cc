#include "math.h"
#include "parallel.h"

namespace ingot::cpu::INGOT_ISA {

void activation(const Context& context, const Call& call) {
  const auto& p = call.as<op::activation::Params>();
  const Matrix &x = call.inputs[op::activation::in_x], &out = call.outputs[op::activation::out_out];
  each_vector(context, out.rows, p.width, [&](size_t r, size_t c, size_t n) {
    store_n(out.row<float>(r) + c, activate(Activation(p.activation), load_n(x.row<float>(r) + c, n)), n);
  });
}

}  // namespace ingot::cpu::INGOT_ISA

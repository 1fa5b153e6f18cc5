#include "product.h"

namespace ingot::cpu::INGOT_ISA {

void linear(const Context& context, const Call& call) {
  const auto& p = call.as<op::linear::Params>();
  const Epilogue epilogue{
      .bias = call.weights[op::linear::weight_bias].as<float>(),
      .activation = Activation(p.activation),
      .residual = call.inputs[op::linear::in_residual],
      .branches = p.branches,
  };
  const Input x{call.inputs[op::linear::in_x], call.weights[op::linear::weight_norm].as<float>(), p.norm_eps,
                p.norm_offset};
  const Factors factors{call.weights[op::linear::weight_weight], call.weights[op::linear::weight_scales],
                        call.weights[op::linear::weight_sub_scales]};
  product(context, x, factors, epilogue, call.outputs[op::linear::out_out]);
}

}  // namespace ingot::cpu::INGOT_ISA

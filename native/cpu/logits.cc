#include "product.h"

namespace ingot::cpu::INGOT_ISA {

void logits(const Context& context, const Call& call) {
  const auto& p = call.as<op::logits::Params>();
  const Epilogue epilogue{
      .bias = call.weights[op::logits::weight_bias].as<float>(),
      .scale = p.scale,
      .softcap = p.softcap,
  };
  const Factors factors{call.weights[op::logits::weight_weight], call.weights[op::logits::weight_scales], Weight{}};
  product(context, Input{call.inputs[op::logits::in_x]}, factors, epilogue, call.outputs[op::logits::out_out]);
}

}  // namespace ingot::cpu::INGOT_ISA

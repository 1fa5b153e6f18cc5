#include "product.h"
#include "product_amx.h"

namespace ingot::cpu::INGOT_ISA {

void linear(const Context& context, const Call& call) {
  const auto& p = call.as<op::linear::Params>();
  Epilogue epilogue{
      .bias = call.weights[op::linear::weight_bias].as<float>(),
      .activation = Activation(p.activation),
      .residual = call.inputs[op::linear::in_residual],
      .branches = p.branches,
  };
  Input x{call.inputs[op::linear::in_x], call.weights[op::linear::weight_norm].as<float>(), p.norm_eps,
          p.norm_offset};
  const Factors factors{call.weights[op::linear::weight_weight], call.weights[op::linear::weight_scales],
                        call.weights[op::linear::weight_sub_scales]};
#if defined(INGOT_ISA_amx)
  epilogue.tiles = call.reader && leaves_tiles(context, call, *call.reader);
  x.tiles = call.writer && leaves_tiles(context, *call.writer, call);
#endif
  product(context, x, factors, epilogue, call.outputs[op::linear::out_out]);
}

}  // namespace ingot::cpu::INGOT_ISA

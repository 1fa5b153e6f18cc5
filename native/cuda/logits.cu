#include "product.h"

namespace ingot::cuda {
namespace {

Product logits_product(const Call& call) {
  namespace op = op::logits;
  const auto& p = call.as<op::Params>();
  const Weight& weight = call.weights[op::weight_weight];
  return {
      .x = call.inputs[op::in_x],
      .residual = {},
      .out = call.outputs[op::out_out],
      .weight = weight.data,
      .scales = call.weights[op::weight_scales].as<__half>(),
      .row_scales = nullptr,
      .sub_scales = nullptr,
      .bias = call.weights[op::weight_bias].as<float>(),
      .norm = nullptr,
      .norm_eps = 0,
      .norm_offset = 0,
      .scale = p.scale,
      .softcap = p.softcap,
      .activation = Activation::none,
      .dtype = weight.dtype,
      .n = p.vocab,
      .k = p.k,
      .branches = 1,
  };
}

}  // namespace

cudaError_t logits(const Context& context, const Call& call) { return product(context, logits_product(call)); }

size_t logits_workspace(const Device& device, const Call& call) {
  return product_workspace(device, logits_product(call));
}

size_t logits_shared(const Call& call) { return product_shared(logits_product(call)); }

Choices logits_choices(const Device& device, const Shape& shape, const Call& call) {
  return product_choices(device, logits_product(call), shape.deterministic);
}

size_t logits_choice_workspace(const Call& call, Choice choice) {
  return product_choice_workspace(logits_product(call), choice);
}

}  // namespace ingot::cuda

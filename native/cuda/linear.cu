#include "product.h"

namespace ingot::cuda {
namespace {

Product linear_product(const Call& call) {
  namespace op = op::linear;
  const auto& p = call.as<op::Params>();
  const Weight& weight = call.weights[op::weight_weight];
  const bool rows = weight.dtype == DType::e4m3;  // one scale each
  return {
      .x = call.inputs[op::in_x],
      .residual = call.inputs[op::in_residual],
      .out = call.outputs[op::out_out],
      .weight = weight.data,
      .scales = rows ? nullptr : call.weights[op::weight_scales].as<__half>(),
      .row_scales = rows ? call.weights[op::weight_scales].as<float>() : nullptr,
      .sub_scales = call.weights[op::weight_sub_scales].as<int8_t>(),
      .bias = call.weights[op::weight_bias].as<float>(),
      .norm = call.weights[op::weight_norm].as<float>(),
      .norm_eps = p.norm_eps,
      .norm_offset = p.norm_offset,
      .scale = 1,
      .softcap = 0,
      .activation = Activation(p.activation),
      .dtype = weight.dtype,
      .n = p.n,
      .k = p.k,
      .branches = p.branches,
  };
}

}  // namespace

cudaError_t linear(const Context& context, const Call& call) { return product(context, linear_product(call)); }

size_t linear_workspace(const Device& device, const Call& call) {
  return product_workspace(device, linear_product(call));
}

size_t linear_shared(const Call& call) { return product_shared(linear_product(call)); }

Choices linear_choices(const Device& device, const Shape& shape, const Call& call) {
  return product_choices(device, linear_product(call), shape.deterministic);
}

size_t linear_choice_workspace(const Call& call, Choice choice) {
  return product_choice_workspace(linear_product(call), choice);
}

}  // namespace ingot::cuda

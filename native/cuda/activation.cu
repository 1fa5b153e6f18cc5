#include "activation.h"
#include "pointwise.h"

namespace ingot::cuda {

cudaError_t activation(const Context& context, const Call& call) {
  const auto& p = call.as<op::activation::Params>();
  const Matrix x = call.inputs[op::activation::in_x];
  const Activation function = Activation(p.activation);
  return launch_pointwise(context, call.outputs[op::activation::out_out], p.width,
                          [=] __device__(size_t r, uint32_t c) { return activate(function, load(x, r, c)); });
}

}  // namespace ingot::cuda

#include "activation.h"
#include "pointwise.h"

namespace ingot::cuda {

cudaError_t glu(const Context& context, const Call& call) {
  const auto& p = call.as<op::glu::Params>();
  const Matrix gate = call.inputs[op::glu::in_gate], up = call.inputs[op::glu::in_up];
  const Activation function = Activation(p.activation);
  const auto gated = [=] __device__(size_t r, uint32_t c) { return activate(function, load(gate, r, c)) * load(up, r, c); };
  return launch_pointwise(context, call.outputs[op::glu::out_out], p.width, gated);
}

}  // namespace ingot::cuda

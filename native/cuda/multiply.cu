#include "pointwise.h"

namespace ingot::cuda {

cudaError_t multiply(const Context& context, const Call& call) {
  const auto& p = call.as<op::multiply::Params>();
  const Matrix x = call.inputs[op::multiply::in_x], y = call.inputs[op::multiply::in_y];
  return launch_pointwise(context, call.outputs[op::multiply::out_out], p.width,
                          [=] __device__(size_t r, uint32_t c) { return load(x, r, c) * load(y, r, c); });
}

}  // namespace ingot::cuda

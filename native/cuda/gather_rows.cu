#include "pointwise.h"

namespace ingot::cuda {

cudaError_t gather_rows(const Context& context, const Call& call) {
  const auto& p = call.as<op::gather_rows::Params>();
  const Matrix x = call.inputs[op::gather_rows::in_x];
  const int32_t* row_token = context.step.row_token;
  return launch_pointwise(context, call.outputs[op::gather_rows::out_out], p.width,
                          [=] __device__(size_t r, uint32_t c) { return load(x, size_t(row_token[r]), c); });
}

}  // namespace ingot::cuda

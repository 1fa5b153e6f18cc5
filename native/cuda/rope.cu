#include "pointwise.h"

namespace ingot::cuda {

cudaError_t rope(const Context& context, const Call& call) {
  const auto& p = call.as<op::rope::Params>();
  const Matrix x = call.inputs[op::rope::in_x];
  const float* inv_freq = call.weights[op::rope::weight_inv_freq].as<float>();
  const int32_t* positions = context.step.positions;
  const uint32_t head_dim = p.head_dim, pairs = p.dim / 2;
  const bool interleaved = RopeStyle(p.style) == RopeStyle::interleaved;
  const float factor = p.attention_factor;
  // The angle is f32, as in the models' own code.
  const auto turned = [=] __device__(size_t t, uint32_t c) {
    const uint32_t i = c % head_dim;
    const float value = load(x, t, c);
    if (i >= 2 * pairs) return value;
    const uint32_t pair = interleaved ? i / 2 : i % pairs;
    const bool first = interleaved ? i % 2 == 0 : i < pairs;
    const uint32_t step = interleaved ? 1 : pairs;
    const float other = load(x, t, first ? c + step : c - step);
    float sine, cosine;
    sincosf(float(positions[t]) * inv_freq[pair], &sine, &cosine);
    return value * (cosine * factor) + (first ? -other : other) * (sine * factor);
  };
  return launch_pointwise(context, call.outputs[op::rope::out_out], p.heads * head_dim, turned);
}

}  // namespace ingot::cuda

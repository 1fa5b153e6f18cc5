#include "rotary.h"

#include <cstring>

#include "parallel.h"

namespace ingot::cpu::INGOT_ISA {

void rope(const Context& context, const Call& call) {
  const auto& p = call.as<op::rope::Params>();
  const Matrix &x = call.inputs[op::rope::in_x], &out = call.outputs[op::rope::out_out];
  const float* inv_freq = call.weights[op::rope::weight_inv_freq].as<float>();
  const size_t pairs = p.dim / 2, rest = 2 * pairs;
  float* angles = context.scratch.take<float>(x.rows * rest);
  each_row(context, x.rows, size_t(p.heads) * p.head_dim, [&](size_t t) {
    float *cosine = angles + t * rest, *sine = cosine + pairs;
    rotary_angles(context.step.positions[t], inv_freq, pairs, p.attention_factor, cosine, sine);
    for (size_t h = 0; h < p.heads; ++h) {
      const float* from = x.row<float>(t) + h * p.head_dim;
      float* to = out.row<float>(t) + h * p.head_dim;
      rotate(from, to, pairs, RopeStyle(p.style), cosine, sine);
      std::memcpy(to + rest, from + rest, (p.head_dim - rest) * sizeof(float));
    }
  });
}

}  // namespace ingot::cpu::INGOT_ISA

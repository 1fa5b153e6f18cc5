#include <cmath>

#include "norm.h"
#include "parallel.h"

namespace ingot::cpu::INGOT_ISA {

void pool(const Context& context, const Call& call) {
  const auto& p = call.as<op::pool::Params>();
  const Matrix &x = call.inputs[op::pool::in_x], &out = call.outputs[op::pool::out_out];
  each_row(context, out.rows, p.width, [&](size_t s) {
    size_t begin = size_t(context.step.sequence_start[s]), end = size_t(context.step.sequence_start[s + 1]);
    if (Pool(p.mode) == Pool::first && begin < end) end = begin + 1;
    if (Pool(p.mode) == Pool::last && begin < end) begin = end - 1;
    float* y = out.row<float>(s);
    const float count = begin < end ? float(end - begin) : 1.0f;
    for (size_t c = 0; c < p.width; c += kLanes) {
      const size_t n = p.width - c < kLanes ? p.width - c : kLanes;
      Vec sum = zero();
      for (size_t t = begin; t < end; ++t) sum = sum + load_n(x.row<float>(t) + c, n);
      store_n(y + c, sum / set(count), n);
    }
    if (!p.normalize) return;
    const double length = std::sqrt(double(sum_of_squares(y, p.width)));
    const Vec scale = set(float(1.0 / (length < 1e-12 ? 1e-12 : length)));  // a zero vector stays zero, NaN stays NaN
    for (size_t c = 0; c < p.width; c += kLanes) {
      const size_t n = p.width - c < kLanes ? p.width - c : kLanes;
      store_n(y + c, load_n(y + c, n) * scale, n);
    }
  });
}

}  // namespace ingot::cpu::INGOT_ISA

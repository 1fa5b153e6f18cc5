#include "element.h"
#include "launch.h"
#include "reduce.h"

namespace ingot::cuda {
namespace {

constexpr uint32_t kThreads = 256;

// One block normalises `width` columns of one row: head blockIdx.y of row blockIdx.x.
__global__ void __launch_bounds__(kThreads) rms_norm_kernel(Matrix x, Matrix out, const float* weight, uint32_t width,
                                                            float eps, float offset) {
  __shared__ float shared[kThreads / 32 + 1];
  let_next_start();
  wait_for_inputs();
  const size_t row = blockIdx.x;
  const uint32_t first = blockIdx.y * width;
  float squares = 0;
  for (uint32_t c = threadIdx.x; c < width; c += kThreads) {
    const float value = load(x, row, first + c);
    squares = fmaf(value, value, squares);
  }
  const float r = 1 / sqrtf(block_sum(squares, shared) / float(width) + eps);
  for (uint32_t c = threadIdx.x; c < width; c += kThreads) {
    const float y = load(x, row, first + c) * r;
    store(out, row, first + c, weight ? y * (offset + weight[c]) : y);
  }
}

}  // namespace

cudaError_t rms_norm(const Context& context, const Call& call) {
  const auto& p = call.as<op::rms_norm::Params>();
  const Matrix &x = call.inputs[op::rms_norm::in_x], &out = call.outputs[op::rms_norm::out_out];
  if (x.rows == 0) return cudaSuccess;
  const float* weight = call.weights[op::rms_norm::weight_weight].as<float>();
  return launch(context, rms_norm_kernel, {dim3(x.rows, p.count), kThreads}, x, out, weight, p.width, p.eps,
                p.weight_offset);
}

}  // namespace ingot::cuda

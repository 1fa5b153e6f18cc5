#include "element.h"
#include "launch.h"
#include "reduce.h"

namespace ingot::cuda {
namespace {

constexpr uint32_t kThreads = 256;

__device__ float pooled(const Matrix& x, int32_t begin, int32_t end, uint32_t column) {
  float sum = 0;
  for (int32_t t = begin; t < end; ++t) sum += load(x, size_t(t), column);
  return sum / float(begin < end ? end - begin : 1);
}

// One block pools one sequence.
__global__ void __launch_bounds__(kThreads) pool_kernel(Matrix x, Matrix out, const int32_t* starts, uint32_t width,
                                                        Pool mode, bool normalize) {
  __shared__ float shared[kThreads / 32 + 1];
  let_next_start();
  wait_for_inputs();
  const size_t s = blockIdx.x;
  int32_t begin = starts[s], end = starts[s + 1];
  if (mode == Pool::first && begin < end) end = begin + 1;
  if (mode == Pool::last && begin < end) begin = end - 1;
  float squares = 0;
  for (uint32_t c = threadIdx.x; normalize && c < width; c += kThreads) {
    const float y = pooled(x, begin, end, c);
    squares = fmaf(y, y, squares);
  }
  const float length = normalize ? sqrtf(block_sum(squares, shared)) : 1;
  const float scale = 1 / (length < 1e-12f ? 1e-12f : length);  // a zero vector stays zero, NaN stays NaN
  for (uint32_t c = threadIdx.x; c < width; c += kThreads) store(out, s, c, pooled(x, begin, end, c) * scale);
}

}  // namespace

cudaError_t pool(const Context& context, const Call& call) {
  const auto& p = call.as<op::pool::Params>();
  const Matrix& out = call.outputs[op::pool::out_out];
  if (out.rows == 0) return cudaSuccess;
  return launch(context, pool_kernel, {out.rows, kThreads}, call.inputs[op::pool::in_x], out,
                context.step.sequence_start, p.width, Pool(p.mode), p.normalize != 0);
}

}  // namespace ingot::cuda

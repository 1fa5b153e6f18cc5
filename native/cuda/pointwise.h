// Kernels that give each element of a register from the same element of others.
#pragma once
#include "element.h"
#include "launch.h"

namespace ingot::cuda {

// out(r, c) = function(r, c) for c < width. One block spans 256 columns of a row.
template <class Function>
__global__ void pointwise(Matrix out, uint32_t width, Function function) {
  let_next_start();
  wait_for_inputs();
  const uint32_t column = blockIdx.y * blockDim.x + threadIdx.x;
  if (column < width) store(out, blockIdx.x, column, function(blockIdx.x, column));
}

template <class Function>
cudaError_t launch_pointwise(const Context& context, const Matrix& out, uint32_t width, const Function& function) {
  if (out.rows == 0) return cudaSuccess;
  return launch(context, pointwise<Function>, {dim3(out.rows, (width + 255) / 256), 256}, out, width, function);
}

}  // namespace ingot::cuda

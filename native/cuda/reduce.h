// Sums over a block in one fixed order.
#pragma once

namespace ingot::cuda {

// The sum of `value` over all threads of a block of 32 * W threads, W <= 32; every thread receives it. `shared` is W + 1
// floats. Ends with a barrier.
__device__ inline float block_sum(float value, float* shared) {
  for (int offset = 16; offset; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  const int warp = threadIdx.x / 32, warps = (blockDim.x + 31) / 32;
  if (threadIdx.x % 32 == 0) shared[warp] = value;
  __syncthreads();
  if (threadIdx.x == 0) {
    float sum = 0;
    for (int w = 0; w < warps; ++w) sum += shared[w];
    shared[warps] = sum;
  }
  __syncthreads();
  return shared[warps];
}

}  // namespace ingot::cuda

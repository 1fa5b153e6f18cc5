// Shared memory of a block that samples, and reductions over its threads in one fixed order.
#pragma once
#include "sample_call.h"

namespace ingot::cuda::sampling {

struct Shared {
  float z[kChunk];
  uint32_t seen[kChunk];  // of a token in the chunk: whether the history has it, and 2 times how often it was put out
  uint64_t batch[kBatch];
  uint32_t bins[kBins];
  uint64_t keys[kWarps];
  double sums[kWarps];
  uint32_t counts[kWarps];
  uint32_t flag, count;
};

struct Less {
  template <class T>
  __device__ T operator()(T a, T b) const { return a < b ? a : b; }
};
struct More {
  template <class T>
  __device__ T operator()(T a, T b) const { return a < b ? b : a; }
};
struct Sum {
  template <class T>
  __device__ T operator()(T a, T b) const { return a + b; }
};

template <class T, class F>
__device__ T warp_reduce(T x, F f) {
  for (int d = 16; d; d /= 2) x = f(x, __shfl_xor_sync(kAll, x, d));
  return x;
}
// Of all threads, for all of them; `scratch` is (kWarps).
template <class T, class F>
__device__ T reduce(T x, F f, T* scratch) {
  x = warp_reduce(x, f);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  T y = scratch[0];
  for (uint32_t i = 1; i < kWarps; ++i) y = f(y, scratch[i]);
  return y;
}
// Sum of x of all threads before this one, and of all.
template <class T>
__device__ T before(T x, T* scratch, T& total) {
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  T upto = x;
  for (uint32_t d = 1; d < 32; d *= 2) {
    const T lower = __shfl_up_sync(kAll, upto, d);
    if (lane >= d) upto += lower;
  }
  __syncthreads();
  if (lane == 31) scratch[warp] = upto;
  __syncthreads();
  T sum = 0;
  total = 0;
  for (uint32_t i = 0; i < kWarps; ++i) {
    if (i == warp) sum = total;
    total += scratch[i];
  }
  const T previous = __shfl_up_sync(kAll, upto, 1);
  return lane ? sum + previous : sum;
}

}  // namespace ingot::cuda::sampling

// Launching with programmatic dependent launch: a kernel may start while the one before it on the stream ends, and waits
// for that one's writes at `wait_for_inputs()`. Until then it may touch only what no kernel of the step writes: weights.
#pragma once
#include "kernel.h"

namespace ingot::cuda {

struct Grid {
  dim3 blocks, threads;
  size_t shared_bytes = 0;
  uint32_t cluster = 1;  // blocks along x that share memory; more than one needs compute capability 9.0
};

template <class... P, class... A>
cudaError_t launch(const Context& context, void (*kernel)(P...), const Grid& grid, A&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = context.stream;
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {grid.cluster, 1, 1};
  config.attrs = attributes;
  config.numAttrs = context.device.major < 9 ? 0 : grid.cluster > 1 ? 2 : 1;
  ++*context.launches;
  return cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...);
}

#ifdef __CUDACC__
// Every kernel calls this before it reads or writes anything that another kernel of the step touches. A kernel that
// returns without it would let its successor run before its predecessor is done.
__device__ inline void wait_for_inputs() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}
// Lets the next kernel start its preamble; at the latest when this one ends.
__device__ inline void let_next_start() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}
#endif

}  // namespace ingot::cuda

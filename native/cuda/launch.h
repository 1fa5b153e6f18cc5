// Launching with programmatic dependent launch: a kernel may start while the one before it on the stream ends, and waits
// for that one's writes at `wait_for_inputs()`. Until then it may touch only what no kernel of the step writes: weights.
#pragma once
#include "kernel.h"

namespace ingot::cuda {

struct Grid {
  dim3 blocks, threads;
  size_t shared_bytes = 0;
  uint32_t cluster = 1;  // blocks along x that share memory; more than one needs compute capability 9.0
  int shared_percent = -1;  // of a multiprocessor's memory, the rest is L1; -1: as the driver likes
};

// What the kernels of a step of few tokens ask for: a multiprocessor that parts its memory anew runs empty first, and
// weights on their way to registers wait in L1.
constexpr int kSharedPercent = 50;

template <class... P, class... A>
cudaError_t launch(const Context& context, void (*kernel)(P...), const Grid& grid, A&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = context.stream;
  cudaLaunchAttribute attributes[3]{};
  config.attrs = attributes;
  const auto add = [&](cudaLaunchAttributeID id) -> cudaLaunchAttributeValue& {
    attributes[config.numAttrs].id = id;
    return attributes[config.numAttrs++].val;
  };
  if (context.device.major >= 9)
    add(cudaLaunchAttributeProgrammaticStreamSerialization).programmaticStreamSerializationAllowed = 1;
  if (grid.cluster > 1) add(cudaLaunchAttributeClusterDimension).clusterDim = {grid.cluster, 1, 1};
  if (grid.shared_percent >= 0)
    add(cudaLaunchAttributePreferredSharedMemoryCarveout).sharedMemCarveout = uint32_t(grid.shared_percent);
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

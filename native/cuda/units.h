// Copies of state units before a step: copy on write, and blocks that start as zeros.
#pragma once
#include <cuda_runtime.h>

#include "../core/kernel.h"

namespace ingot::cuda {

struct UnitPool {
  std::byte* base;
  size_t size;  // bytes of a unit, a multiple of 16
};

// cudaSuccess where this build has code for the current device.
cudaError_t find_code();

// For every state of `pools`, copies unit pairs[i].source to pairs[i].target; no target is a source. It does not let the
// next kernel start early: kernels may read states before they wait for their inputs.
cudaError_t copy_units(const UnitPool* pools, uint32_t states, const CopyPair* pairs, uint32_t count,
                       cudaStream_t stream);

}  // namespace ingot::cuda

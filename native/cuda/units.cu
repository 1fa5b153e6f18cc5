#include "units.h"

namespace ingot::cuda {
namespace {

__global__ void copy(const UnitPool* pools, const CopyPair* pairs) {
  const UnitPool pool = pools[blockIdx.z];
  const CopyPair pair = pairs[blockIdx.y];
  if (pair.source == pair.target) return;
  const uint4* from = reinterpret_cast<const uint4*>(pool.base + pair.source * pool.size);
  uint4* to = reinterpret_cast<uint4*>(pool.base + pair.target * pool.size);
  for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < pool.size / sizeof(uint4); i += gridDim.x * blockDim.x)
    to[i] = from[i];
}

}  // namespace

cudaError_t find_code() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, copy);
}

cudaError_t copy_units(const UnitPool* pools, uint32_t states, const CopyPair* pairs, uint32_t count,
                       cudaStream_t stream) {
  constexpr uint32_t kMost = 65535;  // of a grid's second dimension
  for (uint32_t from = 0; from < count; from += kMost) {
    const dim3 blocks(4, count - from < kMost ? count - from : kMost, states);
    copy<<<blocks, 256, 0, stream>>>(pools, pairs + from);
  }
  return cudaGetLastError();
}

}  // namespace ingot::cuda

// Weights on the device, in one allocation.
#pragma once
#include <vector>

#include "../core/weights.h"
#include "memory.h"

namespace ingot::cuda {

class DeviceWeights {
 public:
  // Bytes that the weights of a plan take on the device.
  static uint64_t bytes_of(const PlanView& plan);
  // Copies and repacks every tensor. Fault OUT_OF_MEMORY, DEVICE_FAILED.
  static Fault upload(const PlanView& plan, const Weights& weights, cudaStream_t stream, DeviceWeights& out);
  const Weight& operator[](uint32_t tensor) const { return tensors_[tensor]; }
  uint64_t bytes() const { return memory_.size(); }

 private:
  DeviceMemory memory_;
  std::vector<Weight> tensors_;
};

}  // namespace ingot::cuda

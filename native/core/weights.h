// The weights of a plan, mapped from the safetensors files of its package.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "kernel.h"
#include "memory.h"
#include "plan_view.h"
#include "status.h"

namespace ingot {

// Where a file keeps one tensor of the plan.
struct WeightRange {
  uint32_t tensor;
  uint64_t offset, bytes;
};

struct WeightFile {
  std::string path;
  uint64_t bytes;
  std::vector<WeightRange> tensors;
};

class Weights {
 public:
  // Maps every file and checks that it holds each tensor of `plan` exactly once, whole and 64-byte aligned.
  static Fault open(const PlanView& plan, const std::vector<WeightFile>& files, Weights& out);
  const Weight& operator[](uint32_t tensor) const { return tensors_[tensor]; }
  uint64_t bytes() const { return bytes_; }

 private:
  Fault add(const PlanView& plan, const WeightFile& file);

  std::vector<MappedFile> files_;
  std::vector<Weight> tensors_;
  uint64_t bytes_ = 0;
};

}  // namespace ingot

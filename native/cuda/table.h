// Kernels by opcode id; kernel nullptr: not supported (compute/cuda.ts says why).
#pragma once
#include "kernel.h"

namespace ingot::cuda {

const Entry& entry_of(uint16_t opcode);

}  // namespace ingot::cuda

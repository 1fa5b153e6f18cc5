// The device that models run on, and why there is none.
#pragma once
#include "../core/device_library.h"
#include "kernel.h"

namespace ingot::cuda {

// Of the first device that the process sees; CUDA_VISIBLE_DEVICES chooses.
DeviceStatus device_status() noexcept;

// Fault DEVICE_FAILED with the reason when there is none. Makes it the calling thread's.
Fault open_device(Device& out, std::string& name);

}  // namespace ingot::cuda

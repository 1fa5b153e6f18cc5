// Device memory and pinned host memory, owned; errors of the runtime as faults.
#pragma once
#include <cuda_runtime.h>

#include <string>

#include "../core/owned.h"
#include "../core/status.h"

namespace ingot::cuda {

// Fault DEVICE_FAILED naming the call and the runtime's reason; success: none.
Fault fault_of(cudaError_t error, const std::string& where);

void free_device(std::byte* data, size_t size);
void free_pinned(std::byte* data, size_t size);

// Plain allocation on the current device, at a multiple of 256 bytes.
class DeviceMemory : public Owned<free_device> {
 public:
  // Fault OUT_OF_MEMORY with needed and available bytes. 0 bytes: no memory.
  static Fault allocate(const char* thing, size_t bytes, DeviceMemory& out);
};

// Page-locked host memory that the device can read and write at the same address.
class PinnedMemory : public Owned<free_pinned> {
 public:
  static Fault allocate(const char* thing, size_t bytes, PinnedMemory& out);
};

}  // namespace ingot::cuda

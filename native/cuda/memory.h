// Device memory and pinned host memory, owned; errors of the runtime as faults.
#pragma once
#include <cuda_runtime.h>

#include <string>

#include "../core/status.h"

namespace ingot::cuda {

// Fault DEVICE_FAILED naming the call and the runtime's reason; success: none.
Fault fault_of(cudaError_t error, const std::string& where);

// Plain allocation on the current device, at a multiple of 256 bytes.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  ~DeviceMemory() { release(); }
  DeviceMemory(DeviceMemory&& other) noexcept;
  DeviceMemory& operator=(DeviceMemory&& other) noexcept;
  // Fault OUT_OF_MEMORY with needed and available bytes. 0 bytes: no memory.
  static Fault allocate(const char* thing, size_t bytes, DeviceMemory& out);
  std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  void release();

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Page-locked host memory that the device can read and write at the same address.
class PinnedMemory {
 public:
  PinnedMemory() = default;
  ~PinnedMemory() { release(); }
  PinnedMemory(PinnedMemory&& other) noexcept;
  PinnedMemory& operator=(PinnedMemory&& other) noexcept;
  static Fault allocate(const char* thing, size_t bytes, PinnedMemory& out);
  std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  void release();

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace ingot::cuda

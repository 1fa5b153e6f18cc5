#include "memory.h"

#include <utility>

#include "../core/memory.h"

namespace ingot::cuda {

Fault fault_of(cudaError_t error, const std::string& where) {
  if (error == cudaSuccess) return {};
  return {"DEVICE_FAILED",
          {{"where", where}, {"reason", std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error)}}};
}

namespace {

// Clears an error that the runtime would report again, and names what is short.
Fault refused(cudaError_t error, const char* thing, size_t bytes) {
  cudaGetLastError();
  size_t available = 0, total = 0;
  if (error != cudaErrorMemoryAllocation || cudaMemGetInfo(&available, &total) != cudaSuccess)
    return fault_of(error, std::string("allocating ") + thing);
  return out_of_memory(thing, double(bytes), double(available));
}

}  // namespace

DeviceMemory::DeviceMemory(DeviceMemory&& other) noexcept { *this = std::move(other); }
DeviceMemory& DeviceMemory::operator=(DeviceMemory&& other) noexcept {
  if (this == &other) return *this;
  release();
  data_ = std::exchange(other.data_, nullptr);
  size_ = std::exchange(other.size_, 0);
  return *this;
}

Fault DeviceMemory::allocate(const char* thing, size_t bytes, DeviceMemory& out) {
  out.release();
  if (bytes == 0) return {};
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, bytes);
  if (error != cudaSuccess) return refused(error, thing, bytes);
  out.data_ = static_cast<std::byte*>(data);
  out.size_ = bytes;
  return {};
}

void DeviceMemory::release() {
  if (data_) cudaFree(data_);
  data_ = nullptr;
  size_ = 0;
}

PinnedMemory::PinnedMemory(PinnedMemory&& other) noexcept { *this = std::move(other); }
PinnedMemory& PinnedMemory::operator=(PinnedMemory&& other) noexcept {
  if (this == &other) return *this;
  release();
  data_ = std::exchange(other.data_, nullptr);
  size_ = std::exchange(other.size_, 0);
  return *this;
}

Fault PinnedMemory::allocate(const char* thing, size_t bytes, PinnedMemory& out) {
  out.release();
  if (bytes == 0) return {};
  void* data = nullptr;
  const cudaError_t error = cudaHostAlloc(&data, bytes, cudaHostAllocMapped | cudaHostAllocPortable);
  if (error != cudaSuccess) return refused(error, thing, bytes);
  out.data_ = static_cast<std::byte*>(data);
  out.size_ = bytes;
  return {};
}

void PinnedMemory::release() {
  if (data_) cudaFreeHost(data_);
  data_ = nullptr;
  size_ = 0;
}

}  // namespace ingot::cuda

#include "memory.h"

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

void free_device(std::byte* data, size_t) { cudaFree(data); }
void free_pinned(std::byte* data, size_t) { cudaFreeHost(data); }

Fault DeviceMemory::allocate(const char* thing, size_t bytes, DeviceMemory& out) {
  out.release();
  if (bytes == 0) return {};
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, bytes);
  if (error != cudaSuccess) return refused(error, thing, bytes);
  out.take(data, bytes);
  return {};
}

Fault PinnedMemory::allocate(const char* thing, size_t bytes, PinnedMemory& out) {
  out.release();
  if (bytes == 0) return {};
  void* data = nullptr;
  const cudaError_t error = cudaHostAlloc(&data, bytes, cudaHostAllocMapped | cudaHostAllocPortable);
  if (error != cudaSuccess) return refused(error, thing, bytes);
  out.take(data, bytes);
  return {};
}

}  // namespace ingot::cuda

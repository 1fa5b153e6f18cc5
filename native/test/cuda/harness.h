// What the tests of CUDA kernels share: a device, memory on it, and numbers.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "../../cuda/kernel.h"

namespace ingot::cuda::test {

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

inline Device this_device() {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0), "device");
  return {0, properties.major, properties.minor, properties.multiProcessorCount, properties.sharedMemPerBlockOptin};
}

// Device memory, freed with this.
class Buffer {
 public:
  explicit Buffer(size_t bytes) : bytes_(bytes) { check(cudaMalloc(&data_, bytes + 256), "cudaMalloc"); }
  template <class T>
  explicit Buffer(const std::vector<T>& from) : Buffer(from.size() * sizeof(T)) {
    check(cudaMemcpy(data_, from.data(), bytes_, cudaMemcpyHostToDevice), "upload");
  }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  std::byte* data() const { return static_cast<std::byte*>(data_); }
  void fill(int byte) { check(cudaMemset(data_, byte, bytes_), "fill"); }
  template <class T>
  std::vector<T> read() const {
    std::vector<T> to(bytes_ / sizeof(T));
    check(cudaMemcpy(to.data(), data_, to.size() * sizeof(T), cudaMemcpyDeviceToHost), "download");
    return to;
  }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

}  // namespace ingot::cuda::test

// Runs a CUDA kernel on a step and a call of the host: copies what they name to the device, and its outputs back.
#pragma once
#include <cstdio>
#include <cstdlib>

#include "../../cuda/kernel.h"
#include "../kernels.h"

#define CUDA_CHECK(call)                                                                                       \
  do {                                                                                                         \
    if (const cudaError_t error = (call)) {                                                                    \
      std::fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(error));           \
      std::exit(1);                                                                                            \
    }                                                                                                          \
  } while (0)

namespace ingot::test {

inline const cuda::Device& device() {
  static const cuda::Device found = [] {
    cudaDeviceProp p;
    CUDA_CHECK(cudaGetDeviceProperties(&p, 0));
    return cuda::Device{0, p.major, p.minor, p.multiProcessorCount, p.sharedMemPerBlockOptin};
  }();
  return found;
}

// Device memory that is taken piece by piece and given back at once.
class Arena {
 public:
  explicit Arena(size_t bytes) : size(bytes) { CUDA_CHECK(cudaMalloc(&base, bytes)); }
  ~Arena() { cudaFree(base); }
  Arena(const Arena&) = delete;

  // `noise`: every byte 0xff, which is NaN as a float of any width.
  std::byte* take(size_t bytes, bool noise = true) {
    std::byte* at = base + used;
    used += (bytes + 511) / 256 * 256;
    CHECK(used <= size);
    if (noise) CUDA_CHECK(cudaMemset(at, 0xff, bytes + 1));
    return at;
  }
  template <class T>
  const T* copy(const T* host, size_t count) {
    T* at = reinterpret_cast<T*>(take(count * sizeof(T), false));
    CUDA_CHECK(cudaMemcpy(at, host, count * sizeof(T), cudaMemcpyHostToDevice));
    return at;
  }
  Matrix copy(const Matrix& m) {
    Matrix to = m;
    to.data = const_cast<std::byte*>(copy(m.data, m.rows * m.stride));
    return to;
  }
  Weight copy(const Weight& w) {
    Weight to = w;
    if (w) to.data = copy(w.data, byte_size(w.dtype, size_t(w.rows) * w.cols));
    return to;
  }
  void clear() { used = 0; }

 private:
  std::byte* base = nullptr;
  size_t size, used = 0;
};

inline void copy_back(const Matrix& from, const Matrix& to) {
  CUDA_CHECK(cudaMemcpy(to.data, from.data, to.rows * to.stride, cudaMemcpyDeviceToHost));
}

// The workspace of one opcode, zeroed once.
inline cuda::Workspace workspace(size_t bytes, bool stateful = true) {
  static std::byte* all[2];
  static size_t sizes[2];
  std::byte*& data = all[stateful];
  size_t& size = sizes[stateful];
  if (bytes > size) {
    CUDA_CHECK(cudaFree(data));
    CUDA_CHECK(cudaMalloc(&data, bytes));
    CUDA_CHECK(cudaMemset(data, 0, size = bytes));
  }
  return {data, size};
}

}  // namespace ingot::test

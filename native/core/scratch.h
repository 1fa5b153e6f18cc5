// Memory that lives for one instruction. Grows to the high-water mark and stays there, so that a steady state allocates
// nothing. Owned by one model; kernels take from it before they fork.
#pragma once
#include <cstddef>

#include "memory.h"

namespace ingot {

class Scratch {
 public:
  // 64-byte aligned; contents are undefined.
  template <class T>
  T* take(size_t count) { return reinterpret_cast<T*>(take_bytes(count * sizeof(T))); }
  void reset();
  // For checks: what is taken holds NaN.
  void set_noisy(bool noisy) { noisy_ = noisy; }
  size_t bytes() const;
  // Bytes taken, or asked for in vain, since the last reset.
  size_t wanted() const { return wanted_; }

 private:
  std::byte* take_bytes(size_t bytes);
  std::byte* reserve(size_t bytes);
  // First `used_` bytes of the region are taken; what does not fit lives in overflow until reset() grows the region.
  Region region_;
  size_t used_ = 0;
  size_t wanted_ = 0;
  bool noisy_ = false;
  struct Overflow;
  Overflow* overflow_ = nullptr;

 public:
  Scratch() = default;
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
};

}  // namespace ingot

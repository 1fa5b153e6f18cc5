// Lines that are asked for before they are read.
#pragma once
#include <cstddef>

namespace ingot::cpu::INGOT_ISA {

// Localities of __builtin_prefetch.
inline constexpr int kIntoL1 = 3, kIntoL2 = 2;

// Asks for the line of `p`. GCC drops calls of functions that do nothing else: the empty statement is what they do.
template <int kInto>
inline void prefetch(const void* p) {
  __builtin_prefetch(p, 0, kInto);
  asm volatile("" ::);
}

// Weights that come from memory for few rows are asked for twice, for memory under load answers late and L1 is small: into
// L2 so far ahead in all streams together, into L1 in each.
inline constexpr size_t kFarBytes = 8192, kNearBytes = 1024;

// From byte `at` of a tile of `bytes` to what is far ahead of it: past its end, a stream of T goes on T tiles later.
template <int T>
inline ptrdiff_t far_ahead(size_t at, size_t bytes) {
  constexpr size_t far = kFarBytes / T;
  return ptrdiff_t(far + (at + far < bytes ? 0 : (T - 1) * bytes));
}

inline void prefetch_weight(const void* p, ptrdiff_t far) {
  prefetch<kIntoL2>(static_cast<const char*>(p) + far);
  prefetch<kIntoL1>(static_cast<const char*>(p) + kNearBytes);
}

}  // namespace ingot::cpu::INGOT_ISA

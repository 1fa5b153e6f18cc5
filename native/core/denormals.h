// Subnormal floats read and write as zero while this lives: they are worth nothing in a model and cost microcode
// assists.
#pragma once
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace ingot {

class FlushDenormals {
#if defined(__SSE2__)
 public:
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | kFlushToZero | kDenormalsAreZero); }
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  static constexpr unsigned kFlushToZero = 0x8000, kDenormalsAreZero = 0x0040;
  unsigned saved_;
#else
 public:
  FlushDenormals() {}
#endif
 public:
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;
};

}  // namespace ingot

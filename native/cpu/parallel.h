// How kernels share work: units of roughly equal cost in contiguous ranges, fixed or with what others leave, or uneven
// ones claimed one at a time.
#pragma once
#include <algorithm>
#include <atomic>
#include <new>

#include "../core/kernel.h"
#include "../core/scratch.h"
#include "../core/thread_pool.h"
#include "simd.h"

namespace ingot::cpu::INGOT_ISA {

// Elements of pointwise work below which a fork costs more than it saves.
inline constexpr size_t kForkElements = 8192;

inline constexpr size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }
inline constexpr size_t round_up(size_t a, size_t b) { return ceil_div(a, b) * b; }

struct Range { size_t begin, end; };

// body(r) for each of `rows` rows of `width` elements.
template <class Body>
void each_row(const Context& context, size_t rows, size_t width, const Body& body) {
  context.pool.parallel(rows, ceil_div(kForkElements, width), [&](size_t begin, size_t end) {
    for (size_t r = begin; r < end; ++r) body(r);
  });
}

// body(row, column, n) for every run of n <= 16 columns of a (rows, width) matrix.
template <class Body>
void each_vector(const Context& context, size_t rows, size_t width, const Body& body) {
  const size_t vectors = ceil_div(width, kLanes);
  context.pool.parallel(rows * vectors, kForkElements / kLanes, [&](size_t begin, size_t end) {
    size_t row = begin / vectors, vector = begin % vectors;
    for (size_t i = begin; i < end; ++i) {
      const size_t column = vector * kLanes;
      body(row, column, width - column < kLanes ? width - column : kLanes);
      if (++vector == vectors) vector = 0, ++row;
    }
  });
}

// What a thread has of its own where it needs nothing.
struct None {};

// body(i, thread, own) for i in [0, count), each claimed by whichever thread is free; that has one Own for all it claims.
template <class Own = None, class Body>
void each_claimed(const Context& context, size_t count, const Body& body) {
  struct Work { const Body& body; size_t count; std::atomic<size_t> next{0}; } work{body, count};
  const auto task = [](void* data, unsigned thread, unsigned) {
    Work& w = *static_cast<Work*>(data);
    Own own;
    for (size_t i; (i = w.next.fetch_add(1, std::memory_order_relaxed)) < w.count;) w.body(i, thread, own);
  };
  if (count <= 1) task(&work, 0, 1);
  else context.pool.run(task, &work);
}

// What a thread has left of its part of some units. The owner takes from its front, others from its back.
class alignas(64) Share {
 public:
  explicit Share(Range range) : left_(pack(range)) {}

  // Up to `most` units; or, as another thread, up to half of what is left.
  Range take(size_t most, bool own) {
    for (uint64_t left = left_.load(std::memory_order_relaxed);;) {
      const Range range{left >> 32, left & 0xffffffff};
      const size_t count = range.end - range.begin, n = std::min(most, own ? count : (count + 1) / 2);
      const Range taken = own ? Range{range.begin, range.begin + n} : Range{range.end - n, range.end};
      const Range rest = own ? Range{taken.end, range.end} : Range{range.begin, taken.begin};
      if (!n || left_.compare_exchange_weak(left, pack(rest), std::memory_order_relaxed)) return taken;
    }
  }

 private:
  static uint64_t pack(Range range) { return uint64_t{range.begin} << 32 | range.end; }
  std::atomic<uint64_t> left_;
};

// body(begin, end, thread) over [0, count), count < 2^32: contiguous ranges of up to `run`, in order through a thread's own
// part; then of the parts of threads that are behind, so that one held up, or on a slow core, does not hold up all.
template <class Body>
void each_shared(const Context& context, size_t count, size_t run, const Body& body) {
  const size_t threads = context.pool.threads();
  struct Work { const Body& body; Share* shares; size_t run; } work{body, context.scratch.take<Share>(threads), run};
  for (size_t i = 0; i < threads; ++i) new (work.shares + i) Share({count * i / threads, count * (i + 1) / threads});
  context.pool.run([](void* data, unsigned thread, unsigned threads) {
    const Work& w = *static_cast<Work*>(data);
    for (unsigned i = 0; i < threads; ++i) {
      Share& share = w.shares[(thread + i) % threads];
      for (Range r; r = share.take(w.run, i == 0), r.begin < r.end;) w.body(r.begin, r.end, thread);
    }
  }, &work);
}

}  // namespace ingot::cpu::INGOT_ISA

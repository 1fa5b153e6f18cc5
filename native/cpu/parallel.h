// How kernels share work: units of roughly equal cost in contiguous ranges, or uneven ones claimed one at a time.
#pragma once
#include <atomic>

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

// body(i, thread) for i in [0, count), each claimed by whichever thread is free.
template <class Body>
void each_claimed(const Context& context, size_t count, const Body& body) {
  struct Work { const Body& body; size_t count; std::atomic<size_t> next{0}; } work{body, count};
  const auto task = [](void* data, unsigned thread, unsigned) {
    Work& w = *static_cast<Work*>(data);
    for (size_t i; (i = w.next.fetch_add(1, std::memory_order_relaxed)) < w.count;) w.body(i, thread);
  };
  if (count <= 1) task(&work, 0, 1);
  else context.pool.run(task, &work);
}

}  // namespace ingot::cpu::INGOT_ISA

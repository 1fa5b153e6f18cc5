// How an idle thread waits: it polls for a bounded time, then sleeps.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>

namespace ingot {

inline void spin_pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield" ::: "memory");
#endif
}

// Returns the value of `word` once it differs from `old`. Acquires what the writer released. The writer changes `word` in
// sequentially consistent order and then notifies: a notify that looks for sleepers ahead of its own store misses one.
inline uint32_t await_change(const std::atomic<uint32_t>& word, uint32_t old) {
  // Longer than the gap between two instructions of a step, short enough that an idle process uses no processor.
  constexpr auto kSpin = std::chrono::microseconds(40);
  constexpr int kPausesPerLook = 32;
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  uint32_t now;
  do {
    for (int i = 0; i < kPausesPerLook; ++i) {
      if ((now = word.load(std::memory_order_acquire)) != old) return now;
      spin_pause();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  while ((now = word.load(std::memory_order_acquire)) == old) word.wait(old);
  return now;
}

}  // namespace ingot

// How an idle thread waits: it polls for a bounded time, then sleeps.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

namespace ingot {

inline void spin_pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield" ::: "memory");
#endif
}

// Polls `done` for up to `spin`; true once it holds. After a few microseconds it offers the processor between looks: what
// it waits for may be queued behind it.
template <class Done>
bool poll(std::chrono::nanoseconds spin, const Done& done) {
  constexpr auto kExclusive = std::chrono::microseconds(4);
  constexpr int kPausesPerLook = 32;
  const auto start = std::chrono::steady_clock::now();
  for (;;) {
    for (int i = 0; i < kPausesPerLook; ++i) {
      if (done()) return true;
      spin_pause();
    }
    const auto waited = std::chrono::steady_clock::now() - start;
    if (waited >= spin) return false;
    if (waited >= kExclusive) std::this_thread::yield();
  }
}

// Returns the value of `word` once it differs from `old`. Acquires what the writer released. The writer changes `word`
// in sequentially consistent order and then notifies: a notify that looks for sleepers ahead of its own store misses
// one.
// By default it polls for longer than the gap between two instructions of a step, and so briefly that an idle process
// uses no processor.
inline uint32_t await_change(const std::atomic<uint32_t>& word, uint32_t old,
                             std::chrono::nanoseconds spin = std::chrono::microseconds(40)) {
  uint32_t now = old;
  const auto changed = [&] { return (now = word.load(std::memory_order_acquire)) != old; };
  if (poll(spin, changed)) return now;
  while (!changed()) word.wait(old);
  return now;
}

}  // namespace ingot

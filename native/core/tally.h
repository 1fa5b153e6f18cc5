// Where the time of steps went, while somebody wants to know.
#pragma once
#include <chrono>
#include <cstdint>
#include <vector>

namespace ingot {

// A step decodes when every sequence of it computes one token; it prefills when any computes more.
enum class Phase : uint8_t { prefill, decode };
inline constexpr size_t kPhases = 2;

struct Tally {
  struct Instruction { uint64_t calls = 0, nanoseconds = 0; };
  struct Steps {
    uint64_t steps = 0, tokens = 0, rows = 0, sequences = 0;
    uint64_t positions = 0;  // known after the step, over its sequences
    uint64_t attended = 0;   // of a token's own sequence up to its own, over the tokens
    uint64_t nanoseconds = 0, states = 0, results = 0;  // of whole steps; of preparing states; of writing results
    std::vector<Instruction> instructions;              // of the plan
  };
  Steps phases[kPhases];
};

// Nanoseconds from one call to the next.
class Laps {
 public:
  uint64_t lap() {
    const Clock::time_point now = Clock::now();
    const auto passed = std::chrono::duration_cast<std::chrono::nanoseconds>(now - last_);
    last_ = now;
    return uint64_t(passed.count());
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point last_ = Clock::now();
};

}  // namespace ingot

// Sentinels, for checks: registers stand apart, each between bands of NaN, and so do the states. Before a step, whatever it
// is to write and whatever nobody wrote is NaN; after it, what it was not to write is compared.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernel.h"
#include "memory.h"
#include "plan_view.h"
#include "step_view.h"

namespace ingot {

class Guard {
 public:
  static constexpr size_t kBand = 4096;  // bytes before and after each register, and each state

  Guard(const PlanView& plan, const StepLimits& limits);
  size_t arena_bytes(Space space) const { return arena_bytes_[size_t(space)]; }
  // Of a register in the arena of its space.
  size_t offset(uint32_t reg) const { return offsets_[reg]; }
  // Sets the memory to watch: the arenas by space, and the states, kBand into their pools. Every byte becomes NaN.
  void watch(std::span<Region> arenas, std::span<Region> pools, std::span<const State> states,
             std::span<const uint32_t> units);

  void before();
  // What the step wrote beside its operands: at most one line a register and state.
  void after(const StepView& view);
  const std::vector<std::string>& faults() const { return faults_; }

 private:
  void check_register(uint32_t reg, const Step& step);
  void check_state(uint32_t state, const StepView& view);
  std::vector<bool> writable(uint32_t state, size_t units, const StepView& view) const;

  const PlanView& plan_;
  size_t arena_bytes_[kSpaces] = {};
  std::vector<size_t> offsets_, capacities_;  // bytes, by register
  std::span<Region> arenas_, pools_;
  std::span<const State> states_;
  std::span<const uint32_t> units_;           // of each state
  std::vector<std::vector<std::byte>> held_;  // of each pool before the step
  std::vector<std::string> faults_;
};

}  // namespace ingot

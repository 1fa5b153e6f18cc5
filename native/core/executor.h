// What runs the steps of an opened model, whatever the device: the CPU's is Model, a library loaded at run time may bring
// another. Also what every one of them derives from a plan and its options alike.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "plan_view.h"
#include "status.h"
#include "step_view.h"
#include "tally.h"

namespace ingot {

struct ModelOptions;

struct MemoryUse {
  uint64_t weights, arena, state, scratch;  // bytes
  // Of steps captured once and replayed since: how many, bytes that `scratch` holds for them, and what capturing took.
  uint64_t captures = 0, capture_bytes = 0, capture_nanoseconds = 0;
};

// Which kernel an instruction takes in launches of at most `rows` rows, and more than half as many.
struct Chosen {
  uint32_t instruction, rows;
  std::string kernel;
};

// How choices of kernels went: those given, taken at open, and launches that a choice decided, or the rules, where there
// was something to choose.
struct ChoiceUse {
  uint64_t given = 0, taken = 0, hits = 0, misses = 0;
};

class Executor {
 public:
  virtual ~Executor() = default;

  // As Model::step.
  virtual Fault step(std::span<const std::byte> step, std::span<std::byte> result,
                     std::span<std::byte> trace) noexcept = 0;

  // Bytes of one unit (block or slot) of a state; 0: there is no such unit. This and what follows: not during a step.
  virtual size_t unit_bytes(uint32_t state, uint32_t unit) const = 0;
  // `bytes` is as large as the unit.
  virtual Fault read_unit(uint32_t state, uint32_t unit, std::span<std::byte> bytes) = 0;
  virtual Fault write_unit(uint32_t state, uint32_t unit, std::span<const std::byte> bytes) = 0;

  virtual void set_tally(bool on) = 0;
  virtual const Tally* tally() const = 0;

  // Of models opened with sentinels, and for tests of failures; an executor without them has none.
  virtual bool guarded() const { return false; }
  virtual std::span<const std::string> sentinels() const { return {}; }
  virtual void fail_after(uint32_t) {}

  // Kernels that can serve a launch of `rows` rows of an instruction, that of the rules first; empty: there is nothing to
  // choose. `decode`: of a step in which every sequence has one token.
  virtual std::vector<std::string> choices(uint32_t, uint32_t, bool) { return {}; }
  // Of a model opened with `compare`: runs a step with each of several sets of choices, in turns, as often as
  // `microseconds` (rounds, sets) has room for; what was chosen before is chosen after. States and results are written.
  virtual Fault compare(std::span<const std::byte>, std::span<std::byte>, std::span<const std::vector<Chosen>>,
                        std::span<double>) noexcept {
    return {"STEP_FAILED", {{"where", "compare"}, {"reason", "this backend has no choices"}}};
  }

  // From any thread, also during a step.
  virtual MemoryUse memory() const = 0;
  virtual ChoiceUse choice_use() const { return {}; }
};

Fault plan_fault(const PlanFault& fault);

// Rows that a space may have in one step.
uint32_t capacity(const StepLimits& limits, Space space);

// a * b and a + b, or the largest value: more than any machine has.
inline uint64_t saturating_product(uint64_t a, uint64_t b) {
  uint64_t result;
  return __builtin_mul_overflow(a, b, &result) ? UINT64_MAX : result;
}
inline uint64_t saturating_sum(uint64_t a, uint64_t b) { return a > UINT64_MAX - b ? UINT64_MAX : a + b; }

StepBounds step_bounds(const PlanView& plan, const ModelOptions& options);

// Index of the register that is the plan's output of that name, or kNone.
uint32_t output_register(const PlanView& plan, const char* name);

// Counts what the step holds into the tally of its phase; nullptr: off.
Tally::Steps* count_step(Tally* tally, const Step& step);

// Fills the row results of a step from the outputs of `sample`, in memory of the host; absent ones have no data.
void write_rows(const StepView& view, const Matrix& tokens, const Matrix& logprobs, const Matrix& top_tokens);

}  // namespace ingot

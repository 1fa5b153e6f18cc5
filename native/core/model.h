// A plan with its weights, memory and kernels bound: what runs steps. Knows no backend; kernels come in a table.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "executor.h"
#include "guard.h"
#include "kernel.h"
#include "last_step.h"
#include "memory.h"
#include "plan_view.h"
#include "scratch.h"
#include "status.h"
#include "step_view.h"
#include "tally.h"
#include "weights.h"

namespace ingot {

struct ModelOptions {
  std::span<const std::byte> plan;
  std::vector<WeightFile> weights;
  unsigned threads;  // of a step, the one that asks for it included; at least 1
  StepLimits limits;
  uint32_t blocks;   // of every paged state, the dump included
  uint32_t slots;    // of every fixed state, the dump included
  bool deterministic = true;  // no bit of a request's output depends on the batch; the CPU's never do
  bool pinned = false;  // each thread to a core of its own
  bool guard = false;   // for checks: sentinels around registers and states
  std::vector<Chosen> choices{};  // kernels, where a backend has several; one that cannot serve is not taken
  bool compare = false;           // with memory for every choice
};

class Model final : public Executor {
 public:
  // Fault PLAN_INVALID, PLAN_NEWER, FILE_*, PACKAGE_INVALID, LINK_GAPS or OUT_OF_MEMORY. The plan's bytes are not kept.
  static Fault open(const ModelOptions& options, const KernelTable& table, std::unique_ptr<Model>& out) noexcept;

  // Checks the step buffer and runs it. One step at a time, from any thread. After a fault, the blocks that the step
  // wrote hold anything; all else is as before.
  // `trace`: receives what each instruction writes, its outputs' rows packed one after the other in the plan's order;
  // exactly as large as that, or empty for none.
  Fault step(std::span<const std::byte> step, std::span<std::byte> result, std::span<std::byte> trace = {}) noexcept override;

  // Bytes of one unit (block or slot) of a state; empty when there is no such unit. Not during a step.
  std::span<std::byte> unit(uint32_t state, uint32_t unit);
  size_t unit_bytes(uint32_t state, uint32_t unit) const override;
  Fault read_unit(uint32_t state, uint32_t unit, std::span<std::byte> bytes) override;
  Fault write_unit(uint32_t state, uint32_t unit, std::span<const std::byte> bytes) override;

  // For tests: the next step fails once that many instructions of the plan have run.
  void fail_after(uint32_t instructions) override { fail_after_ = instructions; }

  // Starts a tally at zero, or ends it; not during a step. Off, a step reads the clock four times.
  void set_tally(bool on) override;
  // nullptr: off. Not during a step.
  const Tally* tally() const override { return tally_.get(); }

  // Of a model opened with `guard`: what the last step wrote and was not to write. Not during a step.
  std::span<const std::string> sentinels() const override { return guard_ ? guard_->faults() : std::span<const std::string>(); }
  bool guarded() const override { return guard_ != nullptr; }

  // From any thread, also during a step.
  MemoryUse memory() const override;

 private:
  struct Operation {
    Kernel kernel;
    Call call;
    Space space;        // of its outputs
    bool stateful;
    Space spaces[kMaxInputs + kMaxOutputs];  // of each matrix, inputs first
  };

  Model() = default;
  Fault bind(const ModelOptions& options, const KernelTable& table);
  Fault check_memory(const ModelOptions& options) const;
  Fault allocate(const ModelOptions& options);
  Fault bind_operations(const ModelOptions& options, const KernelTable& table);
  void link_operations();
  Matrix matrix(uint32_t reg, uint32_t column, uint32_t width, const StepLimits& limits) const;

  void restore_states(const StepView& view);
  void prepare_states(const StepView& view, class ThreadPool& pool);
  size_t trace_bytes(const Step& step) const;
  uint32_t run_operations(const Step& step, class ThreadPool& pool, Tally::Steps* tally, std::byte* trace);
  void write_results(const StepView& view, class ThreadPool& pool) const;

  PlanView plan_;
  Weights weights_;
  Region arenas_[kSpaces];
  std::vector<Region> pools_;     // by state of the plan
  std::vector<Region> saved_;     // of fixed states: what the slots of the step held before it
  std::vector<State> states_;
  std::vector<uint32_t> units_;   // blocks or slots of each state
  std::vector<Operation> operations_;
  Matrix tokens_, logprobs_, top_tokens_, logits_, hidden_;  // outputs of the plan; absent ones have no data
  StepBounds bounds_{};
  LastStep last_;
  unsigned threads_ = 1;
  bool pinned_ = false;
  Scratch scratch_;
  std::atomic<uint64_t> scratch_bytes_{0};
  std::unique_ptr<Tally> tally_;
  std::unique_ptr<Guard> guard_;  // nullptr: off
  uint32_t fail_after_ = kNone;
  const char* running_ = "";      // label of the running instruction, for faults
};

}  // namespace ingot

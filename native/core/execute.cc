// Running a step: states, instructions in the plan's order, results.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <utility>

#include "denormals.h"
#include "model.h"
#include "thread_pool.h"

namespace ingot {
namespace {

[[noreturn]] void fail_injected() { throw std::runtime_error("a failure injected for a test"); }

// Visits the slots of fixed states that a step may write.
template <class Visit>
void each_slot(const StepView& view, const Visit& visit) {
  for (uint32_t s = 0; s < view.step.sequences; ++s) visit(size_t(view.step.sequence_slot[s]));
  for (const int32_t slot : view.resets) visit(size_t(slot));
}

// Copies `rows` rows that `wanted` accepts out of a register into packed rows.
template <class Wanted>
void copy_rows(ThreadPool& pool, const Matrix& from, uint32_t rows, float* to, const Wanted& wanted) {
  const size_t bytes = size_t{from.width} * sizeof(float);
  constexpr size_t kBytesPerTask = size_t{1} << 18;
  pool.parallel(rows, kBytesPerTask / (bytes + 1) + 1, [&](size_t begin, size_t end) {
    for (size_t r = begin; r < end; ++r)
      if (wanted(r)) std::memcpy(to + r * from.width, from.row<std::byte>(r), bytes);
  });
}

// Copies the rows of an instruction's outputs out of their registers, packed; returns where the next ones go.
std::byte* copy_outputs(const Call& call, std::byte* to) {
  for (const Matrix& output : call.outputs) {
    const size_t bytes = byte_size(output.dtype, output.width);
    for (size_t r = 0; output && r < output.rows; ++r, to += bytes) std::memcpy(to, output.row<std::byte>(r), bytes);
  }
  return to;
}

}  // namespace

void Model::set_tally(bool on) {
  tally_.reset();
  if (!on) return;
  auto tally = std::make_unique<Tally>();
  for (Tally::Steps& steps : tally->phases) steps.instructions.resize(operations_.size());
  tally_ = std::move(tally);
}

Fault Model::step(std::span<const std::byte> step, std::span<std::byte> result, std::span<std::byte> trace) noexcept {
  running_ = "the step buffer";
  try {
    const auto start = std::chrono::steady_clock::now();
    const Previous previous = last_.take();
    StepView view;
    if (Fault fault = read_step(step, result, bounds_, previous, view)) return fault;
    if (!trace.empty() && trace.size() != trace_bytes(view.step))
      return {"STEP_FAILED", {{"where", "the trace buffer"}, {"reason", "its size is not that of the step's outputs"}}};
    if (guard_) guard_->before();
    Tally::Steps* const tally = count_step(tally_.get(), view.step);
    uint32_t launches = 0;
    {
      ThreadPool& pool = ThreadPool::shared();
      const ThreadPool::Lease lease(pool, threads_, pinned_);
      const FlushDenormals flush;
      Laps laps;
      prepare_states(view, pool);
      struct Rollback {
        Model& model;
        const StepView& view;
        bool kept = false;
        ~Rollback() { if (!kept) model.restore_states(view); }
      } rollback{*this, view};
      if (tally) tally->states += laps.lap();
      launches = run_operations(view.step, pool, tally, trace.data());
      if (tally) laps.lap();
      write_results(view, pool);
      if (tally) tally->results += laps.lap();
      rollback.kept = true;
    }
    if (guard_) guard_->after(view);
    scratch_bytes_.store(scratch_.bytes(), std::memory_order_relaxed);
    const auto end = std::chrono::steady_clock::now();
    const auto elapsed = end - start;
    if (tally) tally->nanoseconds += uint64_t(std::chrono::duration_cast<std::chrono::nanoseconds>(elapsed).count());
    const auto microseconds = std::chrono::duration_cast<std::chrono::microseconds>(elapsed).count();
    *view.header = {view.step.rows, launches, 0, uint32_t(microseconds), last_.idle_microseconds(start)};
    last_.keep(view, end);
    return {};
  } catch (const std::bad_alloc&) {
    const size_t needed = scratch_.wanted();
    return out_of_memory(std::string("the scratch memory of ") + running_, double(needed), double(available_memory()));
  } catch (const std::exception& error) {
    return {"STEP_FAILED", {{"where", running_}, {"reason", error.what()}}};
  }
}

void Model::prepare_states(const StepView& view, ThreadPool& pool) {
  const Step& step = view.step;
  pool.parallel(states_.size(), 1, [&](size_t begin, size_t end) {
    for (size_t s = begin; s < end; ++s) {
      const State& state = states_[s];
      const auto unit = [&](size_t u) { return state.base + u * state.size; };
      if (plan_.states[s].kind == StateKind::fixed) {
        each_slot(view, [&](size_t u) { std::memcpy(saved_[s].data() + u * state.size, unit(u), state.size); });
        for (const int32_t slot : view.resets) std::memset(unit(size_t(slot)), 0, state.size);
        continue;
      }
      for (const CopyPair& pair : view.copies)
        if (pair.source != pair.target) std::memcpy(unit(pair.target), unit(pair.source), state.size);
      if (!plan_.states[s].zero_init) continue;
      // A block is fresh when this step writes its first position.
      for (uint32_t t = 0; t < step.tokens; ++t) {
        const uint32_t position = uint32_t(step.positions[t]);
        if (position % state.block_tokens != 0) continue;
        const size_t row = size_t(step.token_sequence[t]) * step.blocks_per_sequence;
        std::memset(unit(size_t(step.block_table[row + position / state.block_tokens])), 0, state.size);
      }
    }
  });
}

size_t Model::trace_bytes(const Step& step) const {
  size_t bytes = 0;
  for (const Operation& op : operations_)
    for (size_t k = 0; k < kMaxOutputs; ++k)
      if (const Matrix& output = op.call.outputs[k])
        bytes += count_of(step, op.spaces[kMaxInputs + k]) * byte_size(output.dtype, output.width);
  return bytes;
}

// Returns the kernels launched. An instruction whose output has no row this step, and that touches no state, has
// nothing to do.
uint32_t Model::run_operations(const Step& step, ThreadPool& pool, Tally::Steps* tally, std::byte* trace) {
  const Context context{step, pool, scratch_, trace != nullptr};
  const uint32_t fail_after = std::exchange(fail_after_, kNone);
  Laps laps;
  uint32_t launches = 0;
  for (size_t i = 0; i < operations_.size(); ++i) {
    if (i == fail_after) fail_injected();
    Operation& op = operations_[i];
    if (count_of(step, op.space) == 0 && (!op.stateful || step.tokens == 0)) continue;
    running_ = plan_.instructions[i].label.c_str();
    for (size_t k = 0; k < kMaxInputs; ++k) op.call.inputs[k].rows = count_of(step, op.spaces[k]);
    for (size_t k = 0; k < kMaxOutputs; ++k) op.call.outputs[k].rows = count_of(step, op.spaces[kMaxInputs + k]);
    scratch_.reset();
    op.kernel(context, op.call);
    ++launches;
    if (trace) trace = copy_outputs(op.call, trace);
    if (!tally) continue;
    Tally::Instruction& counted = tally->instructions[i];
    ++counted.calls;
    counted.nanoseconds += laps.lap();
  }
  if (fail_after == operations_.size()) fail_injected();
  return launches;
}

void Model::write_results(const StepView& view, ThreadPool& pool) const {
  const Step& step = view.step;
  const auto flag = [&](uint32_t bit) {
    return [&step, bit](size_t r) { return (step.sampling[r].flags & bit) != 0; };
  };
  write_rows(view, tokens_, logprobs_, top_tokens_);
  if (view.logits) copy_rows(pool, logits_, step.rows, view.logits, flag(kSampleFlagLogits));
  if (!view.hidden) return;
  if (bounds_.hidden_space == Space::rows)
    return copy_rows(pool, hidden_, step.rows, view.hidden, flag(kSampleFlagHidden));
  copy_rows(pool, hidden_, count_of(step, bounds_.hidden_space), view.hidden, [](size_t) { return true; });
}

// What a failed step wrote of paged states nobody reads: positions that are not known, and blocks that nobody has yet.
void Model::restore_states(const StepView& view) {
  for (size_t s = 0; s < states_.size(); ++s) {
    const State& state = states_[s];
    if (plan_.states[s].kind != StateKind::fixed) continue;
    each_slot(view, [&](size_t u) {
      std::memcpy(state.base + u * state.size, saved_[s].data() + u * state.size, state.size);
    });
  }
}

}  // namespace ingot

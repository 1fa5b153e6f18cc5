// Choosing kernels: what can serve an instruction, what was chosen for it when the model was opened, and how fast a
// whole step is with one or the other. A kernel alone would mislead: each starts while the one before it ends, beside it
// on the same multiprocessors.
#include <algorithm>
#include <bit>
#include <chrono>
#include <cstring>
#include <limits>
#include <new>

#include "../core/memory.h"
#include "model.h"
#include "table.h"

namespace ingot::cuda {
namespace {

// Steps of a set are timed together, after one that is not: about so many microseconds of them, at least one and at most.
constexpr double kTurn = 2500;
constexpr uint32_t kMostTimed = 4;
constexpr double kHopeless = 1.05;  // times the fastest

const char* name_of(Choice choice) { return kChoiceNames[size_t(choice)]; }

// Choice::rules: nothing has that name.
Choice choice_named(const std::string& name) {
  const auto found = std::find(std::begin(kChoiceNames), std::end(kChoiceNames), name);
  return found == std::end(kChoiceNames) ? Choice::rules : Choice(found - std::begin(kChoiceNames));
}

// The most rows of a bucket in a model of such limits; 0: it has none.
uint32_t rows_of(size_t bucket, uint32_t most) {
  if (bucket > 0 && most <= uint32_t{1} << (bucket - 1)) return 0;
  return std::min(most, uint32_t{1} << bucket);
}

}  // namespace

// What can serve an instruction in a launch of that many rows.
Choices Model::choices_of(size_t instruction, uint32_t rows, bool decode) {
  const ChoicesOf choices = entry_of(plan_.instructions[instruction].opcode).choices;
  if (!choices || rows == 0) return {};
  Operation& op = operations_[instruction];
  for (Matrix& input : op.call.inputs) input.rows = rows;
  for (Matrix& output : op.call.outputs) output.rows = rows;
  const Choices found = choices(device_, {1, decode, deterministic_}, op.call);
  return std::popcount(found.can) > 1 ? found : Choices{};
}

std::vector<std::string> Model::choices(uint32_t instruction, uint32_t rows, bool decode) {
  std::vector<std::string> names;
  if (instruction >= operations_.size()) return names;
  const Choices found = choices_of(instruction, rows, decode);
  if (found.can) names.push_back(name_of(found.rule));
  for (size_t choice = 1; choice < std::size(kChoiceNames); ++choice)
    if (found.has(Choice(choice)) && Choice(choice) != found.rule) names.push_back(kChoiceNames[choice]);
  return names;
}

// False: there is no such launch, or that kernel cannot serve it.
bool Model::choose(const Chosen& chosen) {
  const Choice choice = choice_named(chosen.kernel);
  if (choice == Choice::rules || chosen.instruction >= operations_.size() || chosen.rows == 0) return false;
  if (chosen.rows > uint32_t{1} << (kBuckets - 1)) return false;
  const auto serves = [&](bool decode) { return choices_of(chosen.instruction, chosen.rows, decode).has(choice); };
  if (!serves(true) && !serves(false)) return false;
  operations_[chosen.instruction].chosen[bucket_of(chosen.rows)] = choice;
  return true;
}

void Model::bind_choices(const ModelOptions& options) {
  for (size_t i = 0; i < operations_.size(); ++i) {
    if (!entry_of(plan_.instructions[i].opcode).choices) continue;
    const uint32_t most = capacity(options.limits, operations_[i].space);
    for (size_t bucket = 0; bucket < kBuckets; ++bucket)
      for (const bool decode : {false, true})
        if (choices_of(i, rows_of(bucket, most), decode).can) operations_[i].chooses[decode] |= 1u << bucket;
  }
  uint64_t taken = 0;
  for (const Chosen& chosen : options.choices) taken += choose(chosen);
  given_ = options.choices.size();
  taken_ = taken;
}

// Workspace that an instruction's choices need; of all that it could be given, to compare them.
size_t Model::choice_bytes(size_t instruction, const StepLimits& limits, bool compare) {
  const Entry& entry = entry_of(plan_.instructions[instruction].opcode);
  if (!entry.choice_workspace) return 0;
  Operation& op = operations_[instruction];
  const uint32_t most = capacity(limits, op.space);
  size_t bytes = 0;
  for (size_t bucket = 0; bucket < kBuckets; ++bucket) {
    const uint32_t rows = rows_of(bucket, most);
    const Choices found = choices_of(instruction, rows, true);  // sets the call's rows
    for (size_t choice = 1; choice < std::size(kChoiceNames); ++choice)
      if (found.has(Choice(choice)) && (compare || op.chosen[bucket] == Choice(choice)))
        bytes = std::max(bytes, entry.choice_workspace(op.call, Choice(choice)));
  }
  return bytes;
}

ChoiceUse Model::choice_use() const {
  const auto of = [](const std::atomic<uint64_t>& count) { return count.load(std::memory_order_relaxed); };
  return {of(given_), of(taken_), of(hits_), of(misses_)};
}

Fault Model::compare(std::span<const std::byte> step, std::span<std::byte> result,
                     std::span<const std::vector<Chosen>> sets, std::span<double> microseconds) noexcept {
  running_ = "the step buffer";
  try {
    if (!lost_.empty()) return {"DEVICE_LOST", {{"device", name_}, {"reason", lost_}}};
    StepView view;
    if (Fault fault = read_step(step, result, bounds_, last_.take(), view)) return fault;
    StepHeader header;
    std::memcpy(&header, step.data(), sizeof header);
    if (Fault failed = fault(cudaSetDevice(device_.ordinal))) return failed;
    const Launch launch = plan_launch(view, header, {});
    if (Fault fault = upload_step(launch)) return fault;
    std::vector<Chooses> before;
    for (const Operation& op : operations_) before.push_back(op.chosen);
    const Fault failed = compare_launch(launch, before, sets, microseconds);
    restore(before);
    return failed;
  } catch (const std::bad_alloc&) {
    return out_of_memory("a step's tables", double(step.size()), double(available_memory()));
  }
}

void Model::restore(std::span<const Chooses> chosen) {
  for (size_t i = 0; i < operations_.size(); ++i) operations_[i].chosen = chosen[i];
}

// Microseconds of a captured step among others of its kind, each as a model runs it: copied there, replayed, awaited.
// `microseconds` says about how many, or 0.
Fault Model::time_graph(const Launch& launch, const Graph& graph, double& microseconds) {
  using Clock = std::chrono::steady_clock;
  const uint32_t count = microseconds > 0 ? uint32_t(std::clamp(kTurn / microseconds, 1.0, double(kMostTimed))) : 1;
  Clock::time_point start;
  for (uint32_t i = 0; i <= count; ++i) {
    if (i == 1) start = Clock::now();
    if (Fault fault = upload_step(launch)) return fault;
    running_ = "a captured step";
    cudaError_t error = cudaGraphLaunch(graph.graph, stream_);
    if (error == cudaSuccess) error = cudaStreamSynchronize(stream_);
    if (Fault failed = fault(error)) return failed;
  }
  microseconds = std::chrono::duration<double, std::micro>(Clock::now() - start).count() / count;
  return {};
}

// All sets in turns; those that the first round shows to be far behind are not run again.
Fault Model::compare_launch(const Launch& launch, std::span<const Chooses> before,
                            std::span<const std::vector<Chosen>> sets, std::span<double> microseconds) {
  struct Graphs : std::vector<Graph> {
    using vector::vector;
    ~Graphs() {
      for (const Graph& graph : *this)
        if (graph.graph) cudaGraphExecDestroy(graph.graph);
    }
  } graphs(sets.size());
  for (size_t s = 0; s < sets.size(); ++s) {
    restore(before);
    for (const Chosen& chosen : sets[s])
      if (!choose(chosen))
        return {"STEP_FAILED", {{"where", "compare"}, {"reason", "no kernel " + chosen.kernel + " can serve that"}}};
    // Kernels are loaded by their first launch, which cannot be captured.
    uint32_t launches = 0;
    if (Fault fault = run(launch, launches)) return fault;
    if (Fault fault = capture(launch, graphs[s])) return fault;
  }
  const size_t rounds = microseconds.size() / std::max<size_t>(sets.size(), 1);
  double best = std::numeric_limits<double>::infinity();
  for (size_t round = 0; round < rounds; ++round)
    for (size_t s = 0; s < sets.size(); ++s) {
      double& time = microseconds[round * sets.size() + s];
      const double first = microseconds[s];
      if (round > 0 && first > kHopeless * best) {
        time = first;
        continue;
      }
      time = round > 0 ? first : 0;
      if (Fault fault = time_graph(launch, graphs[s], time)) return fault;
      if (round == 0) best = std::min(best, time);
    }
  return {};
}

}  // namespace ingot::cuda

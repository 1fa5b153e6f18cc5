// A plan on one CUDA device: weights, arenas and states in its memory, kernels bound, steps on one stream.
#pragma once
#include <array>
#include <atomic>
#include <bit>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "../core/executor.h"
#include "../core/last_step.h"
#include "../core/model.h"
#include "kernel.h"
#include "memory.h"
#include "step_buffer.h"
#include "units.h"
#include "upload.h"

namespace ingot::cuda {

class Model final : public Executor {
 public:
  // Faults of core's Model::open, BACKEND_UNAVAILABLE and DEVICE_FAILED. The plan's bytes are not kept.
  static Fault open(const ModelOptions& options, std::unique_ptr<Executor>& out) noexcept;
  ~Model() override;

  // As core's Model::step. DEVICE_FAILED when a launch or the device failed; DEVICE_LOST, from then on, when the device
  // accepts no work any more.
  Fault step(std::span<const std::byte> step, std::span<std::byte> result,
             std::span<std::byte> trace) noexcept override;

  size_t unit_bytes(uint32_t state, uint32_t unit) const override;
  Fault read_unit(uint32_t state, uint32_t unit, std::span<std::byte> bytes) override;
  Fault write_unit(uint32_t state, uint32_t unit, std::span<const std::byte> bytes) override;

  // On, every step is launched kernel by kernel, and no two kernels overlap.
  void set_tally(bool on) override;
  const Tally* tally() const override { return tally_.get(); }
  void fail_after(uint32_t instructions) override { fail_after_ = instructions; }
  MemoryUse memory() const override;

  std::vector<std::string> choices(uint32_t instruction, uint32_t rows, bool decode) override;
  Fault compare(std::span<const std::byte> step, std::span<std::byte> result,
                std::span<const std::vector<Chosen>> sets, std::span<double> microseconds) noexcept override;
  ChoiceUse choice_use() const override;

 private:
  // Rows up to each power of two.
  static constexpr size_t kBuckets = 32;
  using Chooses = std::array<Choice, kBuckets>;
  static uint32_t bucket_of(uint32_t rows) { return rows > 1 ? uint32_t(std::bit_width(rows - 1)) : 0; }
  struct Operation {
    Kernel kernel;
    Call call;
    Space space;      // of its outputs
    bool stateful;
    Space spaces[kMaxInputs + kMaxOutputs];  // of each matrix, inputs first
    Workspace workspace;
    Chooses chosen{};           // by bucket of its rows
    uint32_t chooses[2]{};      // bits by bucket: whether there is something to choose; in prompts, and in decoding
  };
  // Launches that a choice decided, and those that had one and went by the rules.
  struct Served {
    uint32_t hits = 0, misses = 0;
  };
  // What a captured step is for: lanes, and the longest sequence that it may hold.
  struct Bucket {
    uint32_t lanes, length;
    auto operator<=>(const Bucket&) const = default;
  };
  struct Graph {
    cudaGraphExec_t graph = nullptr;  // nullptr: launched once, kernel by kernel
    uint32_t launches = 0;
    Served served;
  };
  // A step with what its launch is made for.
  struct Launch {
    const StepView& view;
    Counts counts;
    Shape shape;
    bool captured;
    std::span<std::byte> trace;
    Tally::Steps* tally;
  };

  Model() = default;
  Fault bind(const ModelOptions& options);
  Fault check_plan() const;
  Fault check_shared(const Weights& weights) const;
  Fault check_memory(const ModelOptions& options) const;
  uint64_t arena_bytes(const StepLimits& limits) const;
  uint64_t state_bytes(const ModelOptions& options) const;
  Fault allocate(const ModelOptions& options);
  void place_registers(const StepLimits& limits);
  Fault bind_operations();
  Fault bind_workspaces(const ModelOptions& options);
  void bind_choices(const ModelOptions& options);
  Choices choices_of(size_t instruction, uint32_t rows, bool decode);
  bool choose(const Chosen& chosen);
  size_t choice_bytes(size_t instruction, const StepLimits& limits, bool compare);
  Matrix matrix(uint32_t reg, uint32_t column, uint32_t width) const;

  Launch plan_launch(const StepView& view, const StepHeader& header, std::span<std::byte> trace) const;
  Fault reserve_step(size_t bytes);
  Fault upload_step(const Launch& launch);
  Fault run(const Launch& launch, uint32_t& launches);
  Fault run_captured(const Launch& launch, uint32_t& launches);
  Fault capture(const Launch& launch, Graph& graph);
  void set_rows(Operation& op, const DeviceStep& step);
  cudaError_t enqueue(size_t instruction, const DeviceStep& step, const Shape& shape, uint32_t& launches, Served& served);
  void count(const Served& served);
  void restore(std::span<const Chooses> chosen);
  Fault time_graph(const Launch& launch, const Graph& graph, double& microseconds);
  Fault compare_launch(const Launch& launch, std::span<const Chooses> before, std::span<const std::vector<Chosen>> sets,
                       std::span<double> microseconds);
  Fault run_operations(const Launch& launch, uint32_t& launches);
  Fault trace_outputs(const Operation& op, std::span<std::byte>& trace);
  Fault copy_results(const StepView& view);
  Fault finish(const Launch& launch);
  void read_times(Tally::Steps& tally);
  Fault fault(cudaError_t error);
  void drop_graphs();

  PlanView plan_;
  Device device_{};
  std::string name_;
  bool deterministic_ = true;
  cudaStream_t stream_ = nullptr;
  DeviceWeights weights_;
  DeviceMemory arena_, state_, workspace_, step_, pools_;
  PinnedMemory step_host_, results_;
  std::vector<std::byte*> registers_;      // where each starts
  std::vector<DType> dtypes_;              // that it is kept in
  std::vector<State> states_;
  std::vector<uint32_t> units_;            // blocks of each state
  std::vector<Operation> operations_;
  Matrix tokens_, logprobs_, top_tokens_;  // outputs of the plan, in host memory; absent ones have no data
  Matrix logits_, hidden_;                 // likewise, on the device
  StepBounds bounds_{};
  LastStep last_;
  std::map<Bucket, Graph> graphs_;
  std::atomic<uint64_t> graph_bytes_{0}, captures_{0}, capture_nanoseconds_{0};
  std::atomic<uint64_t> given_{0}, taken_{0}, hits_{0}, misses_{0};  // of choices
  std::unique_ptr<Tally> tally_;
  std::vector<cudaEvent_t> times_;         // after each instruction, of a model with a tally
  std::vector<bool> timed_;
  uint32_t fail_after_ = kNone;
  const char* running_ = "";               // label of the instruction being launched, for faults
  std::string lost_;                       // why the device takes no more work; empty: it does
};

}  // namespace ingot::cuda

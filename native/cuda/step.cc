// Running a step: its arrays to the device, states, instructions in the plan's order or a captured graph of them, results.
#include <algorithm>
#include <bit>
#include <chrono>
#include <cstring>
#include <new>
#include <utility>

#include "../core/memory.h"
#include "device.h"
#include "model.h"

namespace ingot::cuda {
namespace {

// The least longest sequence that a captured step is made for; further ones at powers of two.
constexpr uint32_t kLeastLength = 1024;

uint32_t longest(const Step& step) {
  uint32_t most = 0;
  for (uint32_t s = 0; s < step.sequences; ++s) most = std::max(most, uint32_t(step.sequence_length[s]));
  return most;
}

// Copies that do not depend on each other may run at once.
bool independent(std::span<const CopyPair> copies) {
  for (const CopyPair& a : copies)
    for (const CopyPair& b : copies)
      if (a.source == b.target && a.target != b.target) return false;
  return true;
}

float narrow_to_float(const std::byte* from, DType dtype) {
  uint16_t bits;
  std::memcpy(&bits, from, sizeof bits);
  if (dtype == DType::bf16) return std::bit_cast<float>(uint32_t{bits} << 16);
  const uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000 | fraction << 13);
  const float magnitude = exponent ? std::bit_cast<float>((exponent + 112) << 23 | fraction << 13)
                                   : float(fraction) * 0x1p-24f;
  return sign ? -magnitude : magnitude;
}

}  // namespace

void Model::set_tally(bool on) {
  tally_.reset();
  if (!on) return;
  auto tally = std::make_unique<Tally>();
  for (Tally::Steps& steps : tally->phases) steps.instructions.resize(operations_.size());
  cudaSetDevice(device_.ordinal);
  while (times_.size() <= operations_.size()) {
    cudaEvent_t event = nullptr;
    if (cudaEventCreate(&event) != cudaSuccess) return void(cudaGetLastError());
    times_.push_back(event);
  }
  timed_.resize(operations_.size());
  tally_ = std::move(tally);
}

// The fault of a runtime call while a step runs. An error that the device repeats is its end.
Fault Model::fault(cudaError_t error) {
  if (error == cudaSuccess) return {};
  Fault failed = fault_of(error, running_);
  cudaGetLastError();
  const cudaError_t state = cudaStreamSynchronize(stream_);
  if (state == cudaSuccess || state == cudaErrorStreamCaptureUnsupported) return failed;
  cudaGetLastError();
  lost_ = std::string(cudaGetErrorName(state)) + " in " + running_;
  return {"DEVICE_LOST", {{"device", name_}, {"reason", lost_}}};
}

Fault Model::step(std::span<const std::byte> step, std::span<std::byte> result, std::span<std::byte> trace) noexcept {
  running_ = "the step buffer";
  try {
    if (!lost_.empty()) return {"DEVICE_LOST", {{"device", name_}, {"reason", lost_}}};
    const auto start = std::chrono::steady_clock::now();
    const Previous previous = last_.take();
    StepView view;
    if (Fault fault = read_step(step, result, bounds_, previous, view)) return fault;
    StepHeader header;
    std::memcpy(&header, step.data(), sizeof header);
    if (Fault failed = fault(cudaSetDevice(device_.ordinal))) return failed;
    const Launch launch = plan_launch(view, header, trace);
    uint32_t launches = 0;
    if (Fault fault = upload_step(launch)) return fault;
    if (Fault fault = launch.captured ? run_captured(launch, launches) : run(launch, launches)) return fault;
    if (Fault fault = copy_results(view)) return fault;
    if (Fault fault = finish(launch)) return fault;
    write_rows(view, tokens_, logprobs_, top_tokens_);
    const auto end = std::chrono::steady_clock::now();
    const auto elapsed = end - start;
    if (launch.tally)
      launch.tally->nanoseconds += uint64_t(std::chrono::duration_cast<std::chrono::nanoseconds>(elapsed).count());
    const auto microseconds = std::chrono::duration_cast<std::chrono::microseconds>(elapsed).count();
    *view.header = {view.step.rows, launches + (view.copies.empty() ? 0 : 1), 0, uint32_t(microseconds),
                    last_.idle_microseconds(start)};
    last_.keep(view, end);
    return {};
  } catch (const std::bad_alloc&) {
    return out_of_memory("a step's tables", double(step.size()), double(available_memory()));
  }
}

Model::Launch Model::plan_launch(const StepView& view, const StepHeader& header, std::span<std::byte> trace) const {
  const Step& step = view.step;
  const StepLimits& limits = bounds_.limits;
  const uint32_t block = std::max(1u, bounds_.block_tokens), length = longest(step);
  const bool decode = step.tokens == step.sequences;
  const bool captured = decode && step.rows == step.tokens && step.tokens > 0 && !header.history && !header.biases &&
                        !tally_ && trace.empty() && fail_after_ == kNone;
  Launch launch{view, {step.tokens, step.sequences, step.rows, 0, header.history, header.biases, header.copies},
                {length, decode, deterministic_}, captured, trace, nullptr};
  if (captured) {
    const uint32_t most = std::min({limits.tokens, limits.sequences, limits.rows});
    const uint32_t lanes = std::min(std::bit_ceil(step.tokens), most);
    launch.counts.tokens = launch.counts.sequences = launch.counts.rows = lanes;
    const uint64_t context = uint64_t{limits.blocks_per_sequence} * block;
    const uint64_t bound = std::max(kLeastLength, std::bit_ceil(length));
    launch.shape.max_length = bounds_.block_tokens ? uint32_t(std::min(bound, context)) : uint32_t(bound);
  }
  launch.counts.blocks = std::min(limits.blocks_per_sequence, (launch.shape.max_length + block - 1) / block);
  launch.tally = count_step(tally_.get(), step);
  return launch;
}

void Model::drop_graphs() {
  for (auto& [bucket, graph] : graphs_)
    if (graph.graph) cudaGraphExecDestroy(graph.graph);
  graphs_.clear();
}

// Captured graphs hold addresses in the buffer: a larger one ends them.
Fault Model::reserve_step(size_t bytes) {
  if (bytes <= std::min(step_.size(), step_host_.size())) return {};
  drop_graphs();
  if (Fault fault = DeviceMemory::allocate("the step", bytes, step_)) return fault;
  return PinnedMemory::allocate("the step", bytes, step_host_);
}

// The arrays in one copy, then the copies of state units that come before the first instruction.
Fault Model::upload_step(const Launch& launch) {
  const StepLayout layout(launch.counts);
  if (Fault fault = reserve_step(layout.bytes)) return fault;
  pack_step(launch.view.step, launch.counts, step_host_.data());
  const std::span<const CopyPair> copies = launch.view.copies;
  if (!copies.empty()) std::memcpy(step_host_.data() + layout.copies, copies.data(), copies.size_bytes());
  cudaError_t error = cudaMemcpyAsync(step_.data(), step_host_.data(), layout.bytes, cudaMemcpyHostToDevice, stream_);
  const uint32_t states = uint32_t(states_.size()), count = uint32_t(copies.size());
  const uint32_t at_once = independent(copies) ? std::max(1u, count) : 1;
  const auto* pairs = reinterpret_cast<const CopyPair*>(step_.data() + layout.copies);
  for (uint32_t from = 0; error == cudaSuccess && states && from < count; from += at_once)
    error = copy_units(reinterpret_cast<const UnitPool*>(pools_.data()), states, pairs + from, at_once, stream_);
  return fault(error);
}

Fault Model::run(const Launch& launch, uint32_t& launches) {
  if (launch.tally) {
    std::fill(timed_.begin(), timed_.end(), false);
    if (Fault failed = fault(cudaEventRecord(times_[0], stream_))) return failed;
  }
  return run_operations(launch, launches);
}

// An instruction whose output has no row this step, and that touches no state, has nothing to do.
Fault Model::run_operations(const Launch& launch, uint32_t& launches) {
  const DeviceStep step = step_at(launch.counts, step_.data());
  const uint32_t fail_after = std::exchange(fail_after_, kNone);
  std::span<std::byte> trace = launch.trace;
  Served served;
  for (size_t i = 0; i < operations_.size(); ++i) {
    Operation& op = operations_[i];
    if (count_of(step, op.space) == 0 && (!op.stateful || step.tokens == 0)) continue;
    running_ = plan_.instructions[i].label.c_str();
    if (i == fail_after) return {"STEP_FAILED", {{"where", running_}, {"reason", "a failure injected for a test"}}};
    cudaError_t error = enqueue(i, step, launch.shape, launches, served);
    if (error == cudaSuccess && launch.tally) {
      error = cudaEventRecord(times_[i + 1], stream_);
      timed_[i] = true;
    }
    if (Fault failed = fault(error)) return failed;
    if (!trace.empty())
      if (Fault failed = trace_outputs(op, trace)) return failed;
  }
  count(served);
  return {};
}

void Model::set_rows(Operation& op, const DeviceStep& step) {
  for (size_t k = 0; k < kMaxInputs; ++k) op.call.inputs[k].rows = count_of(step, op.spaces[k]);
  for (size_t k = 0; k < kMaxOutputs; ++k) op.call.outputs[k].rows = count_of(step, op.spaces[kMaxInputs + k]);
}

// An instruction's kernel, with what was chosen for launches of its rows.
cudaError_t Model::enqueue(size_t instruction, const DeviceStep& step, const Shape& shape, uint32_t& launches,
                           Served& served) {
  Operation& op = operations_[instruction];
  set_rows(op, step);
  const uint32_t bucket = bucket_of(count_of(step, op.space));
  const Choice chosen = op.chosen[bucket];
  if (op.chooses[shape.decode] >> bucket & 1) ++(chosen == Choice::rules ? served.misses : served.hits);
  return op.kernel({step, shape, device_, op.workspace, stream_, &launches, chosen}, op.call);
}

void Model::count(const Served& served) {
  hits_.fetch_add(served.hits, std::memory_order_relaxed);
  misses_.fetch_add(served.misses, std::memory_order_relaxed);
}

// The first step of a bucket is launched kernel by kernel: it loads them, which cannot be done while capturing.
Fault Model::run_captured(const Launch& launch, uint32_t& launches) {
  const auto [found, first] = graphs_.try_emplace({launch.counts.tokens, launch.shape.max_length});
  Graph& graph = found->second;
  if (first) return run(launch, launches);
  if (!graph.graph) {
    size_t before = 0, after = 0, total = 0;
    const auto start = std::chrono::steady_clock::now();
    cudaMemGetInfo(&before, &total);
    if (Fault failed = capture(launch, graph)) return failed;
    cudaMemGetInfo(&after, &total);
    const auto taken = std::chrono::steady_clock::now() - start;
    graph_bytes_.fetch_add(before > after ? before - after : 0, std::memory_order_relaxed);
    captures_.fetch_add(1, std::memory_order_relaxed);
    capture_nanoseconds_.fetch_add(uint64_t(std::chrono::nanoseconds(taken).count()), std::memory_order_relaxed);
  }
  launches = graph.launches;
  count(graph.served);
  running_ = "a captured step";
  return fault(cudaGraphLaunch(graph.graph, stream_));
}

Fault Model::capture(const Launch& launch, Graph& graph) {
  running_ = "capturing a step";
  if (Fault failed = fault(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal))) return failed;
  graph.launches = 0;
  graph.served = {};
  const DeviceStep step = step_at(launch.counts, step_.data());
  cudaError_t error = cudaSuccess;
  for (size_t i = 0; error == cudaSuccess && i < operations_.size(); ++i) {
    running_ = plan_.instructions[i].label.c_str();
    error = enqueue(i, step, launch.shape, graph.launches, graph.served);
  }
  cudaGraph_t captured = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(stream_, &captured);
  if (error == cudaSuccess) error = ended;
  if (error == cudaSuccess) error = cudaGraphInstantiate(&graph.graph, captured, 0);
  if (captured) cudaGraphDestroy(captured);
  if (error != cudaSuccess) graph.graph = nullptr;
  return fault(error);
}

// The rows of an instruction's outputs, packed, 4 bytes an element; `trace` moves to where the next ones go.
Fault Model::trace_outputs(const Operation& op, std::span<std::byte>& trace) {
  for (const Matrix& output : op.call.outputs) {
    if (!output || output.rows == 0) continue;
    const size_t bytes = byte_size(output.dtype, output.width), row = size_t{output.width} * sizeof(float);
    if (trace.size() < row * output.rows)
      return {"STEP_FAILED", {{"where", "the trace buffer"}, {"reason", "its size is not that of the step's outputs"}}};
    std::vector<std::byte> rows(bytes * output.rows);
    cudaError_t error = cudaStreamSynchronize(stream_);
    if (error == cudaSuccess)
      error = cudaMemcpy2D(rows.data(), bytes, output.data, output.stride, bytes, output.rows, cudaMemcpyDefault);
    if (Fault failed = fault(error)) return failed;
    for (size_t i = 0; i < size_t{output.rows} * output.width; ++i) {
      float value;
      if (bytes == row) std::memcpy(&value, rows.data() + 4 * i, sizeof value);
      else value = narrow_to_float(rows.data() + 2 * i, output.dtype);
      std::memcpy(trace.data() + 4 * i, &value, sizeof value);
    }
    trace = trace.subspan(row * output.rows);
  }
  return {};
}

Fault Model::copy_results(const StepView& view) {
  const Step& step = view.step;
  running_ = "the results";
  // Runs of wanted rows, each one copy.
  const auto copy = [&](const Matrix& from, uint32_t rows, float* to, auto wanted) {
    const size_t bytes = size_t{from.width} * sizeof(float);
    for (uint32_t begin = 0, end; begin < rows; begin = end + 1) {
      for (end = begin; end < rows && wanted(end);) ++end;
      if (end == begin) continue;
      const cudaError_t error = cudaMemcpy2DAsync(to + size_t{begin} * from.width, bytes, from.row<std::byte>(begin),
                                                  from.stride, bytes, end - begin, cudaMemcpyDeviceToHost, stream_);
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  };
  const auto flag = [&](uint32_t bit) { return [&step, bit](uint32_t r) { return (step.sampling[r].flags & bit) != 0; }; };
  if (view.logits)
    if (Fault failed = fault(copy(logits_, step.rows, view.logits, flag(kSampleFlagLogits)))) return failed;
  if (!view.hidden) return {};
  if (bounds_.hidden_space == Space::rows) return fault(copy(hidden_, step.rows, view.hidden, flag(kSampleFlagHidden)));
  return fault(copy(hidden_, count_of(step, bounds_.hidden_space), view.hidden, [](uint32_t) { return true; }));
}

Fault Model::finish(const Launch& launch) {
  running_ = "the step's kernels";
  if (Fault failed = fault(cudaStreamSynchronize(stream_))) return failed;
  if (launch.tally) read_times(*launch.tally);
  return {};
}

void Model::read_times(Tally::Steps& tally) {
  cudaEvent_t last = times_[0];
  for (size_t i = 0; i < operations_.size(); ++i) {
    if (!timed_[i]) continue;
    float milliseconds = 0;
    cudaEventElapsedTime(&milliseconds, last, times_[i + 1]);
    last = times_[i + 1];
    ++tally.instructions[i].calls;
    tally.instructions[i].nanoseconds += uint64_t(milliseconds * 1e6f);
  }
}

size_t Model::unit_bytes(uint32_t state, uint32_t unit) const {
  return state < states_.size() && unit < units_[state] ? states_[state].size : 0;
}

Fault Model::read_unit(uint32_t state, uint32_t unit, std::span<std::byte> bytes) {
  running_ = "reading a state";
  const cudaError_t error = cudaSetDevice(device_.ordinal);
  const std::byte* from = states_[state].base + states_[state].size * unit;
  return fault(error ? error : cudaMemcpy(bytes.data(), from, bytes.size(), cudaMemcpyDeviceToHost));
}

Fault Model::write_unit(uint32_t state, uint32_t unit, std::span<const std::byte> bytes) {
  running_ = "writing a state";
  cudaError_t error = cudaSetDevice(device_.ordinal);
  std::byte* to = states_[state].base + states_[state].size * unit;
  if (error == cudaSuccess) error = cudaMemcpy(to, bytes.data(), bytes.size(), cudaMemcpyHostToDevice);
  return fault(error ? error : cudaDeviceSynchronize());
}

}  // namespace ingot::cuda

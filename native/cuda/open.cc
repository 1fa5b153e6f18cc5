// Opening a model on the device: verify, upload, allocate, and resolve every operand once. Steps are in step.cc.
#include <algorithm>
#include <new>
#include <string_view>

#include "../core/memory.h"
#include "device.h"
#include "model.h"
#include "repack.h"
#include "table.h"

namespace ingot::cuda {
namespace {

constexpr uint64_t kAlign = 256;

Fault gap(const std::string& reason) {
  return {"LINK_GAPS", {{"backend", "cuda"}, {"path", "the plan"}, {"gaps", reason}}};
}

// The dtype that a product wants its x in, given that of its weight; f32: as it is.
DType product_dtype(DType weight) {
  return weight == DType::f32 ? DType::f32 : weight == DType::f16 ? DType::f16 : DType::bf16;
}

// Registers that only products read, as x and without a norm, are kept in the dtype that these multiply in.
std::vector<DType> kept_dtypes(const PlanView& plan) {
  std::vector<DType> kept(plan.registers.size());
  std::vector<bool> read(plan.registers.size());
  for (size_t r = 0; r < kept.size(); ++r) kept[r] = plan.registers[r].dtype;
  std::vector<bool> plain(plan.registers.size());  // something else reads it, or products differ
  for (const PlanOutput& output : plan.outputs) plain[output.reg] = true;
  for (const PlanInstruction& instruction : plan.instructions) {
    const bool product = instruction.opcode == op::linear::id || instruction.opcode == op::logits::id;
    const bool norm = instruction.opcode == op::linear::id && instruction.weights[op::linear::weight_norm] != kNone;
    static_assert(op::linear::in_x == 0 && op::logits::in_x == 0);
    static_assert(op::linear::weight_weight == 0 && op::logits::weight_weight == 0);
    for (size_t i = 0; i < instruction.inputs.size(); ++i) {
      const uint32_t reg = instruction.inputs[i].reg;
      if (reg == kNone) continue;
      if (!product || norm || i != 0) {
        plain[reg] = true;
        continue;
      }
      const DType wanted = product_dtype(plan.tensors[instruction.weights[0]].dtype);
      if (read[reg] && kept[reg] != wanted) plain[reg] = true;
      read[reg] = true;
      kept[reg] = wanted;
    }
  }
  for (size_t r = 0; r < kept.size(); ++r)
    if (plain[r] || plan.registers[r].dtype != DType::f32) kept[r] = plan.registers[r].dtype;
  return kept;
}

// Weights and parameters of an instruction, the weights among `tensors`.
template <class Tensors>
void bind_weights(const PlanInstruction& instruction, const Tensors& tensors, Call& call) {
  for (size_t i = 0; i < instruction.weights.size(); ++i)
    if (instruction.weights[i] != kNone) call.weights[i] = tensors[instruction.weights[i]];
  call.params = instruction.params.data();
}

bool in_host_memory(const PlanView& plan, uint32_t reg) {
  for (const char* name : {"tokens", "logprobs", "top_tokens"})
    if (output_register(plan, name) == reg) return true;
  return false;
}

}  // namespace

Fault Model::open(const ModelOptions& options, std::unique_ptr<Executor>& out) noexcept {
  try {
    std::unique_ptr<Model> model(new Model);
    if (PlanFault fault = verify(options.plan, model->plan_)) return plan_fault(fault);
    if (Fault fault = open_device(model->device_, model->name_)) return fault;
    if (Fault fault = model->bind(options)) return fault;
    out = std::move(model);
    return {};
  } catch (const std::bad_alloc&) {
    return out_of_memory("the model's tables", double(options.plan.size()), double(available_memory()));
  }
}

Model::~Model() {
  cudaSetDevice(device_.ordinal);
  if (stream_) cudaStreamSynchronize(stream_);
  drop_graphs();
  for (const cudaEvent_t event : times_) cudaEventDestroy(event);
  if (stream_) cudaStreamDestroy(stream_);
  cudaGetLastError();
}

Fault Model::bind(const ModelOptions& options) {
  deterministic_ = options.deterministic;
  if (Fault fault = check_plan()) return fault;
  Weights mapped;
  if (Fault fault = Weights::open(plan_, options.weights, mapped)) return fault;
  if (Fault fault = check_shared(mapped)) return fault;
  if (Fault fault = check_memory(options)) return fault;
  if (Fault fault = fault_of(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "opening the model"))
    return fault;
  if (Fault fault = DeviceWeights::upload(plan_, mapped, stream_, weights_)) return fault;
  dtypes_ = kept_dtypes(plan_);
  if (Fault fault = allocate(options)) return fault;
  if (Fault fault = bind_operations()) return fault;
  bind_choices(options);
  if (Fault fault = bind_workspaces(options)) return fault;
  const auto output = [&](const char* name) {
    const uint32_t reg = output_register(plan_, name);
    return reg == kNone ? Matrix{} : matrix(reg, 0, plan_.registers[reg].width);
  };
  tokens_ = output("tokens");
  logprobs_ = output("logprobs");
  top_tokens_ = output("top_tokens");
  logits_ = output("logits");
  hidden_ = output("hidden");
  bounds_ = step_bounds(plan_, options);
  last_.reserve(options.limits);
  const StepLimits& limits = options.limits;
  const Counts most{limits.tokens, limits.sequences, limits.rows, limits.blocks_per_sequence, 0, 0, 0};
  if (Fault fault = reserve_step(StepLayout(most).bytes)) return fault;
  return fault_of(cudaStreamSynchronize(stream_), "opening the model");
}

Fault Model::check_plan() const {
  for (const PlanInstruction& instruction : plan_.instructions)
    if (!entry_of(instruction.opcode).kernel)
      return gap(instruction.label + ": no kernel for opcode " + std::to_string(instruction.opcode));
  for (const PlanState& state : plan_.states) {
    if (state.kind == StateKind::fixed) return gap("state " + state.name + ": no kernel has fixed state");
    if (state.zero_init) return gap("state " + state.name + ": blocks that start as zeros");
    if (state.size_bytes % sizeof(uint4)) return gap("state " + state.name + ": blocks of a size not a multiple of 16");
  }
  return {};
}

// A launch that asks for more shared memory than a block may have would fail in the midst of a step.
Fault Model::check_shared(const Weights& weights) const {
  static std::byte anywhere;
  std::map<size_t, std::pair<std::string, uint32_t>> gaps;  // by bytes: the first instruction, and how many more
  for (const PlanInstruction& instruction : plan_.instructions) {
    const SharedBytes shared = entry_of(instruction.opcode).shared;
    if (!shared) continue;
    Call call{};
    bind_weights(instruction, weights, call);
    for (size_t i = 0; i < instruction.states.size(); ++i) {
      if (instruction.states[i].state == kNone) continue;
      const PlanState& state = plan_.states[instruction.states[i].state];
      call.states[i] = {&anywhere, state.size_bytes, state.block_tokens, state.dtype};
    }
    const size_t bytes = shared(call);
    if (bytes <= device_.shared_bytes) continue;
    const auto [found, first] = gaps.try_emplace(bytes, instruction.label, 0);
    if (!first) ++found->second.second;
  }
  std::string reason;
  for (const auto& [bytes, labels] : gaps)
    reason += (reason.empty() ? "" : "; ") + labels.first +
              (labels.second ? " and " + std::to_string(labels.second) + " more" : "") + ": " + std::to_string(bytes) +
              " bytes of shared memory a block; " + name_ + " has " + std::to_string(device_.shared_bytes);
  return reason.empty() ? Fault{} : gap(reason);
}

uint64_t Model::arena_bytes(const StepLimits& limits) const {
  uint64_t bytes = 0;
  for (size_t s = 0; s < kSpaces; ++s)
    bytes = saturating_sum(bytes, saturating_product(plan_.peak[s], capacity(limits, Space(s))) + kAlign);
  return bytes;
}

uint64_t Model::state_bytes(const ModelOptions& options) const {
  uint64_t bytes = 0;
  for (const PlanState& s : plan_.states)
    bytes = saturating_sum(bytes, saturating_sum(saturating_product(s.size_bytes, options.blocks), kAlign));
  return bytes;
}

// Weights, states and arenas together must fit before any is taken.
Fault Model::check_memory(const ModelOptions& options) const {
  size_t available = 0, total = 0;
  if (Fault fault = fault_of(cudaMemGetInfo(&available, &total), "asking for free memory")) return fault;
  const struct { const char* thing; uint64_t bytes; } parts[] = {{"the weights", DeviceWeights::bytes_of(plan_)},
                                                                 {"the state", state_bytes(options)},
                                                                 {"the activations", arena_bytes(options.limits)}};
  uint64_t left = available;
  for (const auto& part : parts) {
    if (part.bytes > left) return out_of_memory(part.thing, double(part.bytes), double(left));
    left -= part.bytes;
  }
  return {};
}

Fault Model::allocate(const ModelOptions& options) {
  if (Fault fault = DeviceMemory::allocate("the activations", arena_bytes(options.limits), arena_)) return fault;
  if (Fault fault = DeviceMemory::allocate("the state", state_bytes(options), state_)) return fault;
  // What nothing has written is finite: attention multiplies positions that it masks by zero.
  for (const DeviceMemory* memory : {&arena_, &state_})
    if (memory->data())
      if (Fault fault = fault_of(cudaMemsetAsync(memory->data(), 0, memory->size(), stream_), "opening the model"))
        return fault;
  std::vector<UnitPool> pools;
  std::byte* base = state_.data();
  for (const PlanState& state : plan_.states) {
    states_.push_back({base, state.size_bytes, state.block_tokens, state.dtype});
    units_.push_back(options.blocks);
    pools.push_back({base, state.size_bytes});
    base += round_up(state.size_bytes * options.blocks, kAlign);
  }
  if (Fault fault = DeviceMemory::allocate("the state", pools.size() * sizeof(UnitPool), pools_)) return fault;
  if (!pools.empty())
    if (Fault fault = fault_of(cudaMemcpy(pools_.data(), pools.data(), pools_.size(), cudaMemcpyHostToDevice),
                               "opening the model"))
      return fault;
  uint64_t results = 0;
  for (size_t r = 0; r < plan_.registers.size(); ++r)
    if (in_host_memory(plan_, uint32_t(r)))
      results += round_up(uint64_t{plan_.registers[r].stride} * capacity(options.limits, plan_.registers[r].space), kAlign);
  if (Fault fault = PinnedMemory::allocate("the results", results, results_)) return fault;
  place_registers(options.limits);
  return {};
}

// Each space's registers at the plan's offsets, behind those of the space before; what the host reads lies there.
void Model::place_registers(const StepLimits& limits) {
  std::byte* spaces[kSpaces];
  std::byte* end = arena_.data();
  for (size_t s = 0; s < kSpaces; ++s) {
    spaces[s] = end;
    end += round_up(plan_.peak[s] * capacity(limits, Space(s)), kAlign);
  }
  std::byte* host = results_.data();
  for (uint32_t r = 0; r < plan_.registers.size(); ++r) {
    const PlanRegister& reg = plan_.registers[r];
    const uint32_t rows = capacity(limits, reg.space);
    const bool shown = in_host_memory(plan_, r);
    registers_.push_back(shown ? host : spaces[size_t(reg.space)] + reg.offset * rows);
    if (shown) host += round_up(uint64_t{reg.stride} * rows, kAlign);
  }
}

Matrix Model::matrix(uint32_t reg, uint32_t column, uint32_t width) const {
  return {registers_[reg] + byte_size(dtypes_[reg], column), plan_.registers[reg].stride, 0, width, dtypes_[reg]};
}

Fault Model::bind_operations() {
  operations_.reserve(plan_.instructions.size());
  for (const PlanInstruction& instruction : plan_.instructions) {
    Operation op{};
    op.kernel = entry_of(instruction.opcode).kernel;
    for (size_t i = 0; i < instruction.inputs.size(); ++i) {
      const PlanOperand& operand = instruction.inputs[i];
      if (operand.reg == kNone) continue;
      op.call.inputs[i] = matrix(operand.reg, operand.column, operand.width);
      op.spaces[i] = plan_.registers[operand.reg].space;
    }
    for (size_t i = 0; i < instruction.outputs.size(); ++i) {
      const uint32_t reg = instruction.outputs[i];
      if (reg == kNone) continue;
      op.call.outputs[i] = matrix(reg, 0, plan_.registers[reg].width);
      op.space = op.spaces[kMaxInputs + i] = plan_.registers[reg].space;
    }
    bind_weights(instruction, weights_, op.call);
    for (size_t i = 0; i < instruction.states.size(); ++i) {
      if (instruction.states[i].state == kNone) continue;
      op.call.states[i] = states_[instruction.states[i].state];
      op.stateful = true;
    }
    operations_.push_back(op);
  }
  return {};
}

// One workspace an opcode, and one for those of its instructions that keep a state, as large as the largest of them asks
// for: kernels follow each other.
Fault Model::bind_workspaces(const ModelOptions& options) {
  const StepLimits& limits = options.limits;
  size_t sizes[2 * kMaxOpcodes] = {}, total = 0;
  const auto place = [&](size_t i) {
    return 2 * plan_.instructions[i].opcode + (operations_[i].call.states[0] ? 1 : 0);
  };
  for (size_t i = 0; i < operations_.size(); ++i) {
    const WorkspaceBytes bytes = entry_of(plan_.instructions[i].opcode).workspace;
    if (!bytes) continue;
    Operation& op = operations_[i];
    for (size_t k = 0; k < kMaxInputs; ++k) op.call.inputs[k].rows = capacity(limits, op.spaces[k]);
    for (size_t k = 0; k < kMaxOutputs; ++k) op.call.outputs[k].rows = capacity(limits, op.spaces[kMaxInputs + k]);
    size_t& size = sizes[place(i)];
    size = std::max({size, bytes(device_, op.call), choice_bytes(i, limits, options.compare)});
  }
  for (const size_t size : sizes) total += round_up(size, kAlign);
  if (Fault fault = DeviceMemory::allocate("the workspaces", total, workspace_)) return fault;
  if (total == 0) return {};
  if (Fault fault = fault_of(cudaMemsetAsync(workspace_.data(), 0, total, stream_), "opening the model")) return fault;
  std::byte* starts[std::size(sizes)];
  std::byte* end = workspace_.data();
  for (size_t at = 0; at < std::size(sizes); ++at) {
    starts[at] = end;
    end += round_up(sizes[at], kAlign);
  }
  for (size_t i = 0; i < operations_.size(); ++i) operations_[i].workspace = {starts[place(i)], sizes[place(i)]};
  return {};
}

MemoryUse Model::memory() const {
  const uint64_t scratch = workspace_.size() + step_.size() + pools_.size() + graph_bytes_.load(std::memory_order_relaxed);
  return {weights_.bytes(), arena_.size(), state_.size(), scratch, captures_.load(std::memory_order_relaxed),
          graph_bytes_.load(std::memory_order_relaxed), capture_nanoseconds_.load(std::memory_order_relaxed)};
}

}  // namespace ingot::cuda

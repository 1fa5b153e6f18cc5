// Opening a model: verify, map, allocate, and resolve every operand once. Steps are in execute.cc.
#include "model.h"

#include <algorithm>
#include <cstring>
#include <new>

namespace ingot {
namespace {

Fault gap(const KernelTable& table, const std::string& reason) {
  return {"LINK_GAPS", {{"backend", table.isa}, {"path", "the plan"}, {"gaps", reason}}};
}

}  // namespace

Fault Model::open(const ModelOptions& options, const KernelTable& table, std::unique_ptr<Model>& out) noexcept {
  try {
    std::unique_ptr<Model> model(new Model);
    if (PlanFault fault = verify(options.plan, model->plan_)) return plan_fault(fault);
    if (Fault fault = Weights::open(model->plan_, options.weights, model->weights_)) return fault;
    if (Fault fault = model->bind(options, table)) return fault;
    out = std::move(model);
    return {};
  } catch (const std::bad_alloc&) {
    return out_of_memory("the model's tables", double(options.plan.size()), double(available_memory()));
  }
}

Fault Model::bind(const ModelOptions& options, const KernelTable& table) {
  threads_ = std::max(1u, options.threads);
  pinned_ = options.pinned;
  if (Fault fault = check_memory(options)) return fault;
  if (Fault fault = allocate(options)) return fault;
  if (Fault fault = bind_operations(options, table)) return fault;
  for (const PlanOutput& output : plan_.outputs) {
    const Matrix found = matrix(output.reg, 0, plan_.registers[output.reg].width, options.limits);
    if (output.name == "tokens") tokens_ = found;
    if (output.name == "logprobs") logprobs_ = found;
    if (output.name == "top_tokens") top_tokens_ = found;
    if (output.name == "logits") logits_ = found;
    if (output.name == "hidden") hidden_ = found;
  }
  bounds_ = step_bounds(plan_, options);
  last_.reserve(options.limits);
  return {};
}

// Weights, arenas and states together must fit: each alone might, as pages are only taken when first touched.
Fault Model::check_memory(const ModelOptions& options) const {
  uint64_t arena = 0, state = 0;
  for (size_t s = 0; s < kSpaces; ++s)
    arena = saturating_sum(arena, saturating_product(plan_.peak[s], capacity(options.limits, Space(s))));
  for (const PlanState& s : plan_.states)  // of fixed ones, each unit and its copy
    state = saturating_sum(
        state, saturating_product(s.size_bytes, s.kind == StateKind::fixed ? 2 * uint64_t{options.slots} : options.blocks));
  const uint64_t available = available_memory();
  const struct { const char* thing; uint64_t bytes; } parts[] = {
      {"the weights", weights_.bytes()}, {"the state", state}, {"the activations", arena}};
  uint64_t left = available;
  for (const auto& part : parts) {
    if (part.bytes > left) return out_of_memory(part.thing, double(part.bytes), double(left));
    left -= part.bytes;
  }
  return {};
}

// What check_memory has found to fit.
Fault Model::allocate(const ModelOptions& options) {
  if (options.guard) guard_ = std::make_unique<Guard>(plan_, options.limits);
  const size_t band = guard_ ? Guard::kBand : 0;
  for (size_t s = 0; s < kSpaces; ++s) {
    const size_t bytes = guard_ ? guard_->arena_bytes(Space(s)) : plan_.peak[s] * capacity(options.limits, Space(s));
    if (Fault fault = Region::allocate("the activations", bytes, arenas_[s], true)) return fault;
  }
  pools_.resize(plan_.states.size());
  saved_.resize(plan_.states.size());
  for (size_t i = 0; i < plan_.states.size(); ++i) {
    const PlanState& state = plan_.states[i];
    units_.push_back(state.kind == StateKind::fixed ? options.slots : options.blocks);
    const size_t bytes = state.size_bytes * units_[i];
    if (Fault fault = Region::allocate("the state", bytes + 2 * band, pools_[i], true)) return fault;
    if (state.kind == StateKind::fixed)
      if (Fault fault = Region::allocate("the state", bytes, saved_[i], true)) return fault;
    states_.push_back({pools_[i].data() + band, state.size_bytes, state.block_tokens, state.dtype});
  }
  scratch_.set_noisy(options.guard);
  if (guard_) guard_->watch(arenas_, pools_, states_, units_);
  return {};
}

Matrix Model::matrix(uint32_t reg, uint32_t column, uint32_t width, const StepLimits& limits) const {
  const PlanRegister& r = plan_.registers[reg];
  const size_t offset = guard_ ? guard_->offset(reg) : r.offset * capacity(limits, r.space);
  std::byte* base = arenas_[size_t(r.space)].data() + offset;
  return {base + byte_size(r.dtype, column), r.stride, 0, width, r.dtype};
}

Fault Model::bind_operations(const ModelOptions& options, const KernelTable& table) {
  operations_.reserve(plan_.instructions.size());
  for (const PlanInstruction& instruction : plan_.instructions) {
    Operation op{};
    op.kernel = instruction.opcode < kMaxOpcodes ? table.kernels[instruction.opcode] : nullptr;
    if (!op.kernel)
      return gap(table, instruction.label + ": no kernel for opcode " + std::to_string(instruction.opcode));
    for (size_t i = 0; i < instruction.inputs.size(); ++i) {
      const PlanOperand& operand = instruction.inputs[i];
      if (operand.reg == kNone) continue;
      op.call.inputs[i] = matrix(operand.reg, operand.column, operand.width, options.limits);
      op.spaces[i] = plan_.registers[operand.reg].space;
    }
    for (size_t i = 0; i < instruction.outputs.size(); ++i) {
      const uint32_t reg = instruction.outputs[i];
      if (reg == kNone) continue;
      op.call.outputs[i] = matrix(reg, 0, plan_.registers[reg].width, options.limits);
      op.space = op.spaces[kMaxInputs + i] = plan_.registers[reg].space;
    }
    for (size_t i = 0; i < instruction.weights.size(); ++i)
      if (instruction.weights[i] != kNone) op.call.weights[i] = weights_[instruction.weights[i]];
    for (size_t i = 0; i < instruction.states.size(); ++i) {
      if (instruction.states[i].state == kNone) continue;
      op.call.states[i] = states_[instruction.states[i].state];
      op.stateful = true;
    }
    op.call.params = instruction.params.data();
    operations_.push_back(op);
  }
  link_operations();
  return {};
}

// Tells neighbours of one kernel what passes between them alone (Call::reader).
void Model::link_operations() {
  std::vector<uint32_t> uses(plan_.registers.size());
  for (const PlanInstruction& instruction : plan_.instructions)
    for (const PlanOperand& operand : instruction.inputs)
      if (operand.reg != kNone) ++uses[operand.reg];
  for (const PlanOutput& output : plan_.outputs) ++uses[output.reg];
  for (size_t i = 0; i + 1 < operations_.size(); ++i) {
    Operation &op = operations_[i], &next = operations_[i + 1];
    const PlanOperand& x = plan_.instructions[i + 1].inputs[0];
    if (op.kernel != next.kernel || x.reg != plan_.instructions[i].outputs[0] || uses[x.reg] != 1) continue;
    if (x.column != 0 || x.width != plan_.registers[x.reg].width) continue;
    op.call.reader = &next.call;
    next.call.writer = &op.call;
  }
}

std::span<std::byte> Model::unit(uint32_t state, uint32_t unit) {
  if (state >= states_.size() || unit >= units_[state]) return {};
  return {states_[state].base + states_[state].size * unit, states_[state].size};
}

size_t Model::unit_bytes(uint32_t state, uint32_t unit) const {
  return state < states_.size() && unit < units_[state] ? states_[state].size : 0;
}

Fault Model::read_unit(uint32_t state, uint32_t index, std::span<std::byte> bytes) {
  std::memcpy(bytes.data(), unit(state, index).data(), bytes.size());
  return {};
}

Fault Model::write_unit(uint32_t state, uint32_t index, std::span<const std::byte> bytes) {
  std::memcpy(unit(state, index).data(), bytes.data(), bytes.size());
  return {};
}

MemoryUse Model::memory() const {
  MemoryUse use{weights_.bytes(), 0, 0, scratch_bytes_.load(std::memory_order_relaxed)};
  for (const Region& arena : arenas_) use.arena += arena.size();
  for (const Region& pool : pools_) use.state += pool.size();
  for (const Region& saved : saved_) use.state += saved.size();
  return use;
}

}  // namespace ingot

// Plan bytes to PlanView: everything that must hold before a value of the plan means anything.
#include "plan_view.h"

#include <algorithm>
#include <cstring>

#include "../gen/plan_fields.h"
#include "flatbuffer.h"
#include "verify_rules.h"

namespace ingot {
namespace {

using flat::Reader;
using flat::Table;
using flat::Vector;

PlanFault structure(const Reader& in) {
  return refuse(in.rule(), "byte " + std::to_string(in.byte()), "%s", in.reason());
}

PlanRegister read_register(Reader& in, const Table& t) {
  using namespace fields::Register;
  return {std::string(in.string(t, name_)), Space(in.scalar<uint8_t>(t, space_)), DType(in.scalar<uint8_t>(t, dtype_)),
          in.scalar<uint32_t>(t, width_),   in.scalar<uint32_t>(t, stride_),      in.scalar<uint64_t>(t, offset_),
          in.scalar<uint32_t>(t, first_),   in.scalar<uint32_t>(t, last_)};
}

PlanTensor read_tensor(Reader& in, const Table& t) {
  using namespace fields::Tensor;
  return {std::string(in.string(t, name_)), DType(in.scalar<uint8_t>(t, dtype_)), Layout(in.scalar<uint8_t>(t, layout_)),
          in.scalar<uint32_t>(t, rows_),    in.scalar<uint32_t>(t, cols_),        in.scalar<uint64_t>(t, bytes_)};
}

PlanState read_state(Reader& in, const Table& t) {
  using namespace fields::State;
  return {std::string(in.string(t, name_)),      StateKind(in.scalar<uint8_t>(t, kind_)),
          DType(in.scalar<uint8_t>(t, dtype_)),  in.scalar<uint64_t>(t, size_bytes_),
          in.scalar<uint32_t>(t, align_bytes_),  in.scalar<uint8_t>(t, zero_init_) != 0,
          in.scalar<uint32_t>(t, block_tokens_), in.scalar<uint32_t>(t, lifecycle_),
          in.scalar<uint32_t>(t, rewind_),       in.scalar<uint8_t>(t, fork_)};
}

PlanOutput read_output(Reader& in, const Table& t) {
  using namespace fields::Output;
  return {std::string(in.string(t, name_)), in.scalar<uint32_t>(t, register_)};
}

// Reads a vector of tables with `read`.
template <class T, class Read>
void read_tables(Reader& in, const Table& plan, uint16_t field, uint16_t last_field, std::vector<T>& out, Read read) {
  const Vector tables = in.vector(plan, field, 4, 4);
  out.reserve(tables.size);
  for (uint32_t i = 0; i < tables.size && in.ok(); i++) out.push_back(read(in, in.table(tables, i, last_field)));
}

// Bytes of a ParamBlock at `minor`.
uint32_t block_bytes(const OpDef& op, uint16_t minor) {
  uint32_t bytes = 8;
  for (int i = 0; i < op.field_count; i++) bytes += op.fields[i].since <= minor ? 4 : 0;
  return bytes;
}

// The opcode's Params struct out of its block (abi/param-block.ts): an older minor takes the defaults of what it lacks.
PlanFault read_params(const OpDef& op, std::span<const std::byte> blob, uint32_t offset, uint32_t size,
                      const PlanView& plan, size_t index, std::vector<std::byte>& out) {
  const auto at = [&] { return where_instruction(plan, index); };
  if (offset % 8) return refuse("params-range", at(), "params at byte %u, expected a multiple of 8", offset);
  if (size < 8 || offset > blob.size() || size > blob.size() - offset)
    return refuse("params-range", at(), "params at bytes %u to %llu of %zu", offset,
                  static_cast<unsigned long long>(offset) + size, blob.size());
  const std::byte* block = blob.data() + offset;
  uint32_t stored;
  uint16_t version[2];
  std::memcpy(&stored, block, 4);
  std::memcpy(version, block + 4, 4);
  if (version[0] != op.param_major || version[1] > op.param_minor)
    return refuse("params-version", at(), "version %u.%u, this runtime reads %u.0 to %u.%u", version[0], version[1],
                  op.param_major, op.param_major, op.param_minor);
  const uint32_t expected = block_bytes(op, version[1]);
  if (stored != expected || size != expected)
    return refuse("params-size", at(), "block of %u bytes in %u, version %u.%u has %u", stored, size, version[0],
                  version[1], expected);
  out.resize(op.params_bytes);
  const uint32_t header[] = {op.params_bytes, op.param_major | uint32_t(op.param_minor) << 16};
  std::memcpy(out.data(), header, 8);
  for (uint32_t i = 0, from = 8; i < op.field_count; i++) {
    const bool has = op.fields[i].since <= version[1];
    const void* value = has ? static_cast<const void*>(block + from) : &op.fields[i].default_bits;
    std::memcpy(out.data() + 8 + 4 * i, value, 4);
    from += has ? 4 : 0;
  }
  return {};
}

PlanFault count_fault(const PlanView& plan, size_t index, const char* what, uint32_t got, uint32_t most) {
  return refuse("operand-count", where_instruction(plan, index), "%u %s, expected at most %u", got, what, most);
}

// Operands by position of the definition; those not written are absent.
PlanFault read_operands(Reader& in, const Table& t, const OpDef& op, const PlanView& plan, size_t index,
                        PlanInstruction& out) {
  using namespace fields::Instruction;
  const Vector inputs = in.vector(t, inputs_, 12, 4), outputs = in.vector(t, outputs_, 4, 4);
  const Vector weights = in.vector(t, weights_, 4, 4), states = in.vector(t, states_, 8, 4);
  if (inputs.size > op.input_count) return count_fault(plan, index, "inputs", inputs.size, op.input_count);
  if (outputs.size > op.output_count) return count_fault(plan, index, "outputs", outputs.size, op.output_count);
  if (weights.size > op.weight_count) return count_fault(plan, index, "weights", weights.size, op.weight_count);
  if (states.size > op.state_count) return count_fault(plan, index, "states", states.size, op.state_count);
  out.inputs.assign(op.input_count, {kNone, 0, 0});
  out.outputs.assign(op.output_count, kNone);
  out.weights.assign(op.weight_count, kNone);
  out.states.assign(op.state_count, {kNone, StateAccess(0)});
  for (uint32_t i = 0; i < inputs.size; i++) {
    const auto word = [&](uint32_t offset) { return in.scalar<uint32_t>(inputs, i, 12, offset); };
    out.inputs[i] = {word(fields::Operand::register_), word(fields::Operand::column_), word(fields::Operand::width_)};
  }
  for (uint32_t i = 0; i < outputs.size; i++) out.outputs[i] = in.scalar<uint32_t>(outputs, i, 4);
  for (uint32_t i = 0; i < weights.size; i++) out.weights[i] = in.scalar<uint32_t>(weights, i, 4);
  for (uint32_t i = 0; i < states.size; i++) {
    const uint32_t access = in.scalar<uint32_t>(states, i, 8, fields::StateUse::access_);
    out.states[i] = {in.scalar<uint32_t>(states, i, 8, fields::StateUse::state_), StateAccess(std::min(access, 255u))};
  }
  return {};
}

// Appends the instruction first, so that a fault can name it.
PlanFault read_instruction(Reader& in, const Table& t, std::span<const std::byte> params, PlanView& plan) {
  using namespace fields::Instruction;
  const size_t index = plan.instructions.size();
  PlanInstruction& out = plan.instructions.emplace_back();
  out.opcode = in.scalar<uint16_t>(t, opcode_);
  out.version = in.scalar<uint16_t>(t, version_);
  out.last_use = in.scalar<uint32_t>(t, last_use_);
  out.label = in.string(t, label_);
  const auto offset = in.scalar<uint32_t>(t, params_offset_), size = in.scalar<uint32_t>(t, params_size_);
  if (!in.ok()) return structure(in);
  const OpDef* op = find_op(out.opcode);
  if (!op) return refuse("opcode-unknown", where_instruction(plan, index), "opcode %u", out.opcode);
  if (out.version < 1 || out.version > op->version)
    return refuse("opcode-version", where_instruction(plan, index), "%s version %u, this runtime has 1 to %u", op->name,
                  out.version, op->version);
  if (PlanFault fault = read_operands(in, t, *op, plan, index, out)) return fault;
  return in.ok() ? read_params(*op, params, offset, size, plan, index, out.params) : structure(in);
}

PlanFault read_instructions(Reader& in, const Table& root, PlanView& plan) {
  using namespace fields::Plan;
  const auto params = in.bytes(in.vector(root, params_, 1, 1));
  const Vector tables = in.vector(root, instructions_, 4, 4);
  plan.instructions.reserve(tables.size);
  for (uint32_t i = 0; i < tables.size && in.ok(); i++) {
    const Table t = in.table(tables, i, fields::Instruction::label_);
    if (PlanFault fault = read_instruction(in, t, params, plan)) return fault;
  }
  return {};
}

// One number a space.
PlanFault read_totals(Reader& in, const Table& memory, uint16_t field, uint64_t (&out)[kSpaces]) {
  const Vector totals = in.vector(memory, field, 8, 8);
  if (in.ok() && totals.size != kSpaces)
    return refuse("memory-totals", "memory", "%u entries, expected one for each of %u spaces", totals.size, kSpaces);
  for (uint32_t i = 0; i < totals.size; i++) out[i] = in.scalar<uint64_t>(totals, i, 8);
  return {};
}

PlanFault read_header(Reader& in, const Table& root, PlanView& plan) {
  using namespace fields::Plan;
  const auto format = in.scalar<uint32_t>(root, format_), runtime = in.scalar<uint32_t>(root, min_runtime_);
  if (in.ok() && runtime > kRuntimeVersion) {
    PlanFault fault = refuse("min-runtime", "plan", "needs runtime %u, this is %u", runtime, kRuntimeVersion);
    fault.min_runtime = runtime;
    return fault;
  }
  if (in.ok() && (format != kPlanFormat || runtime < 1))
    return refuse("format", "plan", "format %u for runtime %u, expected format %u", format, runtime, kPlanFormat);
  plan.model = in.string(root, model_);
  plan.vocab = in.scalar<uint32_t>(root, vocab_);
  plan.hidden = in.scalar<uint32_t>(root, hidden_);
  plan.max_context = in.scalar<uint32_t>(root, max_context_);
  return {};
}

}  // namespace

PlanFault read_plan(std::span<const std::byte> bytes, PlanView& plan) {
  using namespace fields::Plan;
  Reader in(bytes);
  if (in.ok() && in.identifier() != "INGT") return refuse("identifier", "byte 4", "expected INGT");
  // A plan for a newer runtime is named as such even where it has fields that this one does not know.
  const Table root = in.root(UINT16_MAX - 2);
  if (PlanFault fault = read_header(in, root, plan)) return fault;
  in.root(params_);
  read_tables(in, root, registers_, fields::Register::last_, plan.registers, read_register);
  read_tables(in, root, tensors_, fields::Tensor::bytes_, plan.tensors, read_tensor);
  read_tables(in, root, states_, fields::State::fork_, plan.states, read_state);
  read_tables(in, root, outputs_, fields::Output::register_, plan.outputs, read_output);
  const Table memory = in.ok() ? in.table(root, memory_, fields::Memory::lower_bound_) : Table();
  if (PlanFault fault = read_totals(in, memory, fields::Memory::peak_, plan.peak)) return fault;
  if (PlanFault fault = read_totals(in, memory, fields::Memory::lower_bound_, plan.lower_bound)) return fault;
  if (PlanFault fault = read_instructions(in, root, plan)) return fault;
  return in.ok() ? PlanFault() : structure(in);
}

}  // namespace ingot

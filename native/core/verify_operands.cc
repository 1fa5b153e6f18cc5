// Rules on the operands of each instruction: what abi/ops/ declares, against what the plan gives.
#include <array>
#include <string_view>

#include "verify_rules.h"

namespace ingot {
namespace {

struct Place {
  const PlanView& plan;
  size_t index;
  const PlanInstruction& instruction() const { return plan.instructions[index]; }
  std::string text(const char* operand) const { return where_instruction(plan, index) + " " + operand; }
};

PlanFault missing(const Place& place, const char* operand) {
  return refuse("operand-missing", place.text(operand), "absent, and not optional");
}

PlanFault no_index(const Place& place, const char* operand, uint32_t index, size_t count) {
  return refuse("operand-index", place.text(operand), "index %u of %zu", index, count);
}

// Width, dtype and space of one input or output; `any` is the space that the instruction's `any` operands share.
PlanFault check_register_operand(const Place& place, const OperandDef& definition, const PlanOperand& operand,
                                 uint8_t& any) {
  const PlanRegister& r = place.plan.registers[operand.reg];
  if (uint64_t(operand.column) + operand.width > r.width)
    return refuse("operand-columns", place.text(definition.name), "columns %u to %llu of register %u, which has %u",
                  operand.column, (unsigned long long)operand.column + operand.width, operand.reg, r.width);
  const uint64_t width = evaluate(definition.width, place.instruction().params.data());
  if (operand.width != width)
    return refuse("operand-width", place.text(definition.name), "width %u, expected %llu", operand.width,
                  (unsigned long long)width);
  if (r.dtype != definition.dtype)
    return refuse("operand-type", place.text(definition.name), "dtype %u, expected %u", unsigned(r.dtype),
                  unsigned(definition.dtype));
  const auto space = uint8_t(r.space);
  if (definition.space == kAnySpace && any == kAnySpace) any = space;
  const uint8_t wanted = definition.space == kAnySpace ? any : definition.space;
  if (space != wanted)
    return refuse("operand-type", place.text(definition.name), "space %u, expected %u", space, wanted);
  return {};
}

PlanFault check_registers(const Place& place, const OpDef& op) {
  const size_t count = place.plan.registers.size();
  uint8_t any = kAnySpace;
  for (int i = 0; i < op.input_count; i++) {
    const PlanOperand& input = place.instruction().inputs[i];
    const OperandDef& definition = op.inputs[i];
    if (input.reg == kNone && !definition.optional) return missing(place, definition.name);
    if (input.reg == kNone) continue;
    if (input.reg >= count) return no_index(place, definition.name, input.reg, count);
    if (PlanFault fault = check_register_operand(place, definition, input, any)) return fault;
  }
  for (int i = 0; i < op.output_count; i++) {
    const uint32_t output = place.instruction().outputs[i];
    const OperandDef& definition = op.outputs[i];
    if (output == kNone && !definition.optional) return missing(place, definition.name);
    if (output == kNone) continue;
    if (output >= count) return no_index(place, definition.name, output, count);
    const PlanOperand whole{output, 0, place.plan.registers[output].width};
    if (PlanFault fault = check_register_operand(place, definition, whole, any)) return fault;
  }
  return {};
}

// Which weight of an opcode holds the scales of each: "scales" those of the first, "x_scales" those of "x", and likewise
// "sub_scales"; -1: none.
struct ScaleSlots {
  int8_t scales[8], sub_scales[8];
  bool is_scale[8], is_sub_scale[8];
};

constexpr ScaleSlots scale_slots(const OpDef& op) {
  ScaleSlots slots{};
  for (int i = 0; i < 8; i++) slots.scales[i] = slots.sub_scales[i] = -1;
  for (int i = 0; i < op.weight_count; i++) {
    const std::string_view name = op.weights[i].name;
    if (!name.ends_with("scales")) continue;
    const bool sub = name.ends_with("sub_scales");
    const size_t suffix = sub ? 10 : 6;
    (sub ? slots.is_sub_scale : slots.is_scale)[i] = true;
    const std::string_view base = name.size() == suffix ? op.weights[0].name : name.substr(0, name.size() - suffix - 1);
    for (int k = 0; k < op.weight_count; k++)
      if (base == op.weights[k].name) (sub ? slots.sub_scales : slots.scales)[k] = int8_t(i);
  }
  return slots;
}

constexpr auto kScaleSlots = [] {
  std::array<ScaleSlots, std::size(kOps)> all{};
  for (size_t i = 0; i < all.size(); i++) all[i] = scale_slots(kOps[i]);
  return all;
}();

// Whether weight `slot` holds the scales of an e4m3 weight.
bool scales_e4m3(const Place& place, const OpDef& op, int slot) {
  const auto& weights = place.instruction().weights;
  const auto& tensors = place.plan.tensors;
  const ScaleSlots& slots = kScaleSlots[op.id - 1];
  for (int k = 0; k < op.weight_count; k++)
    if (slots.scales[k] == slot && weights[k] < tensors.size() && tensors[weights[k]].dtype == DType::e4m3) return true;
  return false;
}

PlanFault check_weight(const Place& place, const OpDef& op, int slot, uint32_t index) {
  const WeightDef& definition = op.weights[slot];
  const PlanTensor& tensor = place.plan.tensors[index];
  if ((tensor.layout != Layout::row) != definition.tiled)
    return refuse("weight-form", place.text(definition.name), "tensor %u is %s, expected %s", index,
                  definition.tiled ? "row-major" : "tiled", definition.tiled ? "tiled" : "row-major");
  const std::byte* params = place.instruction().params.data();
  const uint64_t rows = evaluate(definition.rows, params);
  const uint64_t cols = scales_e4m3(place, op, slot) ? 1 : evaluate(definition.cols, params);
  if (tensor.rows != rows || tensor.cols != cols)
    return refuse("weight-form", place.text(definition.name), "tensor %u is %u x %u, expected %llu x %llu", index,
                  tensor.rows, tensor.cols, (unsigned long long)rows, (unsigned long long)cols);
  return {};
}

PlanFault check_scales(const Place& place, const OpDef& op) {
  const auto& weights = place.instruction().weights;
  const ScaleSlots& slots = kScaleSlots[op.id - 1];
  for (int i = 0; i < op.weight_count; i++) {
    if (weights[i] == kNone) continue;
    const DType dtype = place.plan.tensors[weights[i]].dtype;
    const auto wrong = [&](const char* what) {
      return refuse("weight-scales", place.text(op.weights[i].name), "dtype %u%s", unsigned(dtype), what);
    };
    const bool channel = scales_e4m3(place, op, i);
    if (slots.is_scale[i] && dtype != (channel ? DType::f32 : DType::f16))
      return wrong(channel ? ", expected f32" : ", expected f16");
    const bool apart = place.plan.tensors[weights[i]].layout == Layout::tile16;
    if (slots.is_sub_scale[i] && (dtype != DType::i8 || !apart)) return wrong(", expected int8 in tile16");
    if (slots.is_scale[i] || slots.is_sub_scale[i]) continue;
    if (dtype == DType::i8 && apart) return wrong(" in tile16, the layout of sub-scales");
    const auto given = [&](int8_t slot) { return slot >= 0 && weights[slot] != kNone; };
    const bool scaled = given(slots.scales[i]), sub_scaled = given(slots.sub_scales[i]);
    const bool needs = dtype == DType::i8 || dtype == DType::i4 || dtype == DType::e4m3;
    if (scaled != needs) return wrong(scaled ? " with scales" : " without scales");
    if (sub_scaled != (dtype == DType::i4)) return wrong(sub_scaled ? " with sub-scales" : " without sub-scales");
  }
  return {};
}

PlanFault check_weights(const Place& place, const OpDef& op) {
  const size_t count = place.plan.tensors.size();
  for (int i = 0; i < op.weight_count; i++) {
    const uint32_t weight = place.instruction().weights[i];
    const WeightDef& definition = op.weights[i];
    if (weight == kNone && !definition.optional) return missing(place, definition.name);
    if (weight == kNone) continue;
    if (weight >= count) return no_index(place, definition.name, weight, count);
    if (PlanFault fault = check_weight(place, op, i, weight)) return fault;
  }
  return check_scales(place, op);
}

PlanFault check_state_use(const Place& place, const OpDef& op, const StateDef& definition, const PlanStateUse& use) {
  const PlanState& state = place.plan.states[use.state];
  if (state.kind != definition.kind || use.access != definition.access)
    return refuse("state-access", place.text(definition.name), "kind %u accessed as %u, expected kind %u as %u",
                  unsigned(state.kind), unsigned(use.access), unsigned(definition.kind), unsigned(definition.access));
  const bool recurrence = op.id == op::ssm_scan::id || op.id == op::delta_rule::id;
  if (recurrence && state.dtype != DType::f32)
    return refuse("state-type", place.text(definition.name), "dtype %u, expected f32", unsigned(state.dtype));
  const bool scaled = state.dtype == DType::i8;
  if (scaled && definition.scales.count == 0)
    return refuse("state-type", place.text(definition.name), "dtype i8, but this state has no scales");
  const std::byte* params = place.instruction().params.data();
  const uint64_t unit = byte_size(state.dtype, state.block_tokens), align = state.align_bytes;
  const uint64_t elements = evaluate(definition.elements, params);
  const uint64_t scales = scaled ? evaluate(definition.scales, params) * sizeof(float) : 0;
  const bool fits = elements <= kMaxBytes / unit && scales <= kMaxBytes / unit;
  const uint64_t bytes = fits ? (elements * unit + scales * state.block_tokens + align - 1) / align * align : 0;
  if (bytes == 0 || state.size_bytes != bytes)
    return refuse("state-size", place.text(definition.name),
                  "%llu bytes a unit, expected %llu elements of %llu bytes and %llu scales",
                  (unsigned long long)state.size_bytes, (unsigned long long)elements, (unsigned long long)unit,
                  (unsigned long long)(scales / sizeof(float)));
  return {};
}

PlanFault check_states(const Place& place, const OpDef& op) {
  const size_t count = place.plan.states.size();
  for (int i = 0; i < op.state_count; i++) {
    const PlanStateUse& use = place.instruction().states[i];
    const StateDef& definition = op.states[i];
    if (use.state == kNone && !definition.optional) return missing(place, definition.name);
    if (use.state == kNone) continue;
    if (use.state >= count) return no_index(place, definition.name, use.state, count);
    if (PlanFault fault = check_state_use(place, op, definition, use)) return fault;
  }
  return {};
}

}  // namespace

PlanFault check_operands(const PlanView& plan) {
  for (size_t i = 0; i < plan.instructions.size(); i++) {
    const Place place{plan, i};
    const OpDef& op = *find_op(plan.instructions[i].opcode);
    if (PlanFault fault = check_registers(place, op)) return fault;
    if (PlanFault fault = check_weights(place, op)) return fault;
    if (PlanFault fault = check_states(place, op)) return fault;
  }
  return {};
}

}  // namespace ingot

// The load-time verifier. A plan is sound when every rule of this table holds; the names are stable.
//
//   identifier        the file identifier is INGT
//   format            the format is kPlanFormat and a runtime is named
//   min-runtime       no newer runtime is needed
//   structure         every offset, vector, table and string lies inside the bytes, aligned; at most 16 MiB
//   unknown-field     no table has a field that this runtime does not know
//   string            strings are UTF-8 without control characters
//   header            vocabulary, hidden width and context are from 1 to 2^31 - 1
//   register-type     a register's space is known, its dtype is f32 or i32
//   register-extent   its width is not 0, its stride and offset are multiples of 64, a row fits the stride
//   tensor-name       a tensor has a name, which no other has
//   tensor-type       its dtype is one of its layout: f32 for row; f32, f16, i8 for tile16; bf16 for tile16x2; i8, e4m3
//                     for tile16x4; i4 for tile16x8
//   tensor-bytes      its shape is not 0 and its bytes are those of the padded shape
//   state-type        a state's kind is known; its dtype is f32, f16 or bf16, f32 where a recurrence adds up in it, or i8
//                     where the definition has scales
//   state-unit        alignment is a power of two; a paged or ring block has kBlockTokens positions, a fixed record 1
//   state-capability  it declares no lifecycle, rewind or fork beyond its kind's, and the kind's zero_init
//   opcode-unknown    this runtime has the opcode
//   opcode-version    and this version of it
//   operand-count     no more inputs, outputs, weights or states than the definition has
//   params-range      a ParamBlock lies inside the blob, at a multiple of 8
//   params-version    its version is known: the same major, no newer minor
//   params-size       its size is that of its version
//   params-value      its values are in range and agree with each other and with the operands that are present
//   operand-missing   each input, output, weight and state that is not optional is present
//   operand-index     a register, tensor or state that is named exists
//   operand-columns   the columns of an input lie inside its register
//   operand-width     a width is the one that the definition computes from the parameters
//   operand-type      the register's dtype and space are the definition's; operands in `any` space share one
//   weight-form       a tensor has the form, tiled or row, and the shape of the definition; scales of e4m3 one column
//   weight-scales     int8 and int4 weights have f16 scales, e4m3 f32 ones, int4 int8 sub-scales, and only they have them
//   state-access      kind and access are the definition's
//   state-size        bytes of a unit, scales included, are those of the definition, rounded up to the alignment
//   definition        each register is defined once, before it is read
//   liveness          first and last of a register are those derived from the instructions
//   last-use          last_use of an instruction is the derived one
//   overlap           no two registers of a space that are live at one instruction share bytes
//   memory-totals     peak and lower bound of each space are the derived ones
//   state-order       a state has exactly one writer, and no reader before it
//   output            outputs are named, known, unique, of the right dtype, width and space; there is at least one
#include <algorithm>
#include <bit>
#include <cstdarg>
#include <cstdio>
#include <new>
#include <string_view>
#include <vector>

#include "verify_rules.h"

namespace ingot {

PlanFault refuse(const char* rule, std::string where, const char* reason, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, reason);
  std::vsnprintf(text, sizeof text, reason, arguments);
  va_end(arguments);
  return {rule, std::move(where), text};
}

std::string where(const char* what, size_t index, const std::string& name) {
  std::string text = std::string(what) + " " + std::to_string(index);
  return name.empty() ? text : text + " (" + name + ")";
}

std::string where_instruction(const PlanView& plan, size_t index) {
  return where("instruction", index, plan.instructions[index].label);
}

const OpDef* find_op(uint16_t id) {
  static_assert([] {
    for (size_t i = 0; i < std::size(kOps); i++)
      if (kOps[i].id != i + 1) return false;
    return true;
  }());
  return id >= 1 && id <= std::size(kOps) ? &kOps[id - 1] : nullptr;
}

uint64_t evaluate(const SizeDef& size, const std::byte* params) {
  uint64_t product = 1;
  for (int i = 0; i < size.count; i++) {
    const FactorDef& factor = size.factors[i];
    uint64_t value = factor.multiply;
    if (factor.param >= 0) {
      const uint64_t param = *reinterpret_cast<const uint32_t*>(params + factor.param);
      value *= (param + factor.divide - 1) / factor.divide;
    }
    if (__builtin_mul_overflow(product, value, &product)) return UINT64_MAX;
  }
  return product;
}

namespace {

PlanFault check_header(const PlanView& plan) {
  const auto limit = [](uint32_t value) { return value >= 1 && value <= INT32_MAX; };
  if (limit(plan.vocab) && limit(plan.hidden) && limit(plan.max_context)) return {};
  return refuse("header", "plan", "vocabulary %u, hidden %u, context %u: expected 1 to 2^31 - 1", plan.vocab,
                plan.hidden, plan.max_context);
}

PlanFault check_register(const PlanRegister& r, size_t index) {
  const auto at = [&] { return where("register", index, r.name); };
  if (uint8_t(r.space) >= kSpaces) return refuse("register-type", at(), "unknown space %u", unsigned(r.space));
  if (r.dtype != DType::f32 && r.dtype != DType::i32)
    return refuse("register-type", at(), "dtype %u, expected f32 or i32", unsigned(r.dtype));
  if (r.width == 0 || r.stride % 64 || byte_size(r.dtype, r.width) > r.stride)
    return refuse("register-extent", at(), "%u elements in a stride of %u bytes", r.width, r.stride);
  if (r.offset % 64 || r.offset > kMaxBytes)
    return refuse("register-extent", at(), "offset %llu, expected a multiple of 64", (unsigned long long)r.offset);
  return {};
}

bool layout_holds(Layout layout, DType dtype) {
  switch (layout) {
    case Layout::row: return dtype == DType::f32;
    case Layout::tile16: return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::i8;
    case Layout::tile16x2: return dtype == DType::bf16;
    case Layout::tile16x4: return dtype == DType::i8 || dtype == DType::e4m3;
    case Layout::tile16x8: return dtype == DType::i4;
  }
  return false;
}

// Stored bytes of a tensor whose type is known; UINT64_MAX where they overflow.
uint64_t stored_bytes(const PlanTensor& t) {
  const LayoutDef& layout = kLayouts[size_t(t.layout)];
  const uint64_t rows = (uint64_t(t.rows) + layout.rows - 1) / layout.rows * layout.rows;
  const uint64_t cols = (uint64_t(t.cols) + layout.align - 1) / layout.align * layout.align;
  uint64_t elements, bits;
  if (__builtin_mul_overflow(rows, cols, &elements)) return UINT64_MAX;
  return __builtin_mul_overflow(elements, dtype_bits(t.dtype), &bits) ? UINT64_MAX : bits / 8;
}

PlanFault check_tensor(const PlanTensor& t, size_t index) {
  const auto at = [&] { return where("tensor", index, t.name); };
  if (t.name.empty()) return refuse("tensor-name", at(), "has no name");
  if (!layout_holds(t.layout, t.dtype))
    return refuse("tensor-type", at(), "dtype %u in layout %u", unsigned(t.dtype), unsigned(t.layout));
  const uint64_t bytes = stored_bytes(t);
  if (bytes == 0 || bytes > kMaxBytes || t.bytes != bytes)
    return refuse("tensor-bytes", at(), "%llu bytes for %u x %u, expected %llu", (unsigned long long)t.bytes, t.rows,
                  t.cols, (unsigned long long)bytes);
  return {};
}

// Sorted, not hashed: names from outside can be made to collide.
PlanFault check_tensor_names(const PlanView& plan) {
  std::vector<std::string_view> names;
  names.reserve(plan.tensors.size());
  for (const PlanTensor& t : plan.tensors) names.push_back(t.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice == names.end()) return {};
  return refuse("tensor-name", "tensor " + std::string(*twice), "two tensors have this name");
}

PlanFault check_state(const PlanState& s, size_t index) {
  const auto at = [&] { return where("state", index, s.name); };
  const auto kind = unsigned(s.kind);
  if (kind < 1 || kind > std::size(kCapabilities)) return refuse("state-type", at(), "unknown kind %u", kind);
  if (s.dtype != DType::f32 && s.dtype != DType::f16 && s.dtype != DType::bf16 && s.dtype != DType::i8)
    return refuse("state-type", at(), "dtype %u, expected f32, f16, bf16 or i8", unsigned(s.dtype));
  const uint32_t tokens = s.kind == StateKind::fixed ? 1 : kBlockTokens;
  if (s.block_tokens != tokens)
    return refuse("state-unit", at(), "%u positions a unit, expected %u", s.block_tokens, tokens);
  if (!std::has_single_bit(s.align_bytes) || s.align_bytes < byte_size(s.dtype, 1) || s.align_bytes > 4096)
    return refuse("state-unit", at(), "alignment %u, expected a power of two up to 4096", s.align_bytes);
  const CapabilityDef& can = kCapabilities[kind - 1];
  if ((s.lifecycle & ~can.lifecycle) || s.rewind > can.rewind || s.fork > can.fork || s.zero_init != can.zero_init)
    return refuse("state-capability", at(), "lifecycle %u, rewind %u, fork %u, zero_init %d: more than its kind has",
                  s.lifecycle, s.rewind, s.fork, s.zero_init);
  return {};
}

// What a plan may give out, and how wide it is.
struct OutputDef { std::string_view name; DType dtype; uint32_t width; bool pooled; };

PlanFault check_output(const PlanView& plan, size_t index) {
  const OutputDef known[] = {{"tokens", DType::i32, 1, false},
                             {"logprobs", DType::f32, 1 + kTopLogprobs, false},
                             {"top_tokens", DType::i32, kTopLogprobs, false},
                             {"logits", DType::f32, plan.vocab, false},
                             {"hidden", DType::f32, plan.hidden, true}};
  const PlanOutput& output = plan.outputs[index];
  const auto at = [&] { return where("output", index, output.name); };
  for (size_t i = 0; i < index; i++)
    if (plan.outputs[i].name == output.name) return refuse("output", at(), "named twice");
  for (const OutputDef& definition : known) {
    if (definition.name != output.name) continue;
    if (output.reg >= plan.registers.size()) return refuse("output", at(), "register %u does not exist", output.reg);
    const PlanRegister& r = plan.registers[output.reg];
    if (r.dtype != definition.dtype || r.width != definition.width)
      return refuse("output", at(), "dtype %u, width %u: expected dtype %u, width %u", unsigned(r.dtype), r.width,
                    unsigned(definition.dtype), definition.width);
    if (r.space != Space::rows && !(definition.pooled && r.space == Space::sequences))
      return refuse("output", at(), "in space %u, expected rows", unsigned(r.space));
    return {};
  }
  return refuse("output", at(), "not an output of this runtime");
}

// One writer each; whoever only reads comes after it.
PlanFault check_state_order(const PlanView& plan) {
  std::vector<bool> written(plan.states.size());
  for (size_t i = 0; i < plan.instructions.size(); i++) {
    for (const PlanStateUse& use : plan.instructions[i].states) {
      if (use.state == kNone) continue;
      const bool writes = uint8_t(use.access) & uint8_t(StateAccess::write);
      if (writes == written[use.state])
        return refuse("state-order", where_instruction(plan, i), "state %u is %s", use.state,
                      writes ? "written twice" : "read before it is written");
      written[use.state] = true;
    }
  }
  for (size_t i = 0; i < written.size(); i++)
    if (!written[i]) return refuse("state-order", where("state", i, plan.states[i].name), "nothing writes it");
  return {};
}

PlanFault run(std::span<const std::byte> bytes, PlanView& plan) {
  if (PlanFault fault = read_plan(bytes, plan)) return fault;
  if (PlanFault fault = check_entries(plan)) return fault;
  if (PlanFault fault = check_operands(plan)) return fault;
  if (PlanFault fault = check_params(plan)) return fault;
  if (PlanFault fault = check_state_order(plan)) return fault;
  return check_memory(plan);
}

}  // namespace

PlanFault check_entries(const PlanView& plan) {
  if (PlanFault fault = check_header(plan)) return fault;
  for (size_t i = 0; i < plan.registers.size(); i++)
    if (PlanFault fault = check_register(plan.registers[i], i)) return fault;
  for (size_t i = 0; i < plan.tensors.size(); i++)
    if (PlanFault fault = check_tensor(plan.tensors[i], i)) return fault;
  if (PlanFault fault = check_tensor_names(plan)) return fault;
  for (size_t i = 0; i < plan.states.size(); i++)
    if (PlanFault fault = check_state(plan.states[i], i)) return fault;
  if (plan.outputs.empty()) return refuse("output", "plan", "a plan without outputs computes nothing");
  for (size_t i = 0; i < plan.outputs.size(); i++)
    if (PlanFault fault = check_output(plan, i)) return fault;
  return {};
}

PlanFault verify(std::span<const std::byte> bytes, PlanView& out) noexcept {
  try {
    PlanView plan{};
    if (PlanFault fault = run(bytes, plan)) return fault;
    out = std::move(plan);
    return {};
  } catch (const std::bad_alloc&) {
    PlanFault fault;  // short strings: no allocation
    fault.rule = "structure", fault.where = "plan", fault.reason = "out of memory";
    return fault;
  }
}

}  // namespace ingot

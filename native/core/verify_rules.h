// The parts of the load-time verifier; verify.cc lists the rules and runs the parts in order. Each part answers the
// first rule that is broken, or an empty fault. A later part relies on what an earlier one has proved.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "../gen/abi.h"
#include "plan_view.h"

namespace ingot {

// JavaScript reads every 64-bit number of a plan as a double.
inline constexpr uint64_t kMaxBytes = uint64_t(1) << 53;

[[gnu::format(printf, 3, 4)]] PlanFault refuse(const char* rule, std::string where, const char* reason, ...);
std::string where(const char* what, size_t index, const std::string& name);
std::string where_instruction(const PlanView& plan, size_t index);

// The definition of an opcode, or nullptr for an id that this runtime does not know.
const OpDef* find_op(uint16_t id);

// Value of a size under an opcode's Params struct; UINT64_MAX where it overflows.
uint64_t evaluate(const SizeDef& size, const std::byte* params);

// Bytes to plan: structure, opcodes, counts of operands and ParamBlocks (plan_view.cc).
PlanFault read_plan(std::span<const std::byte> bytes, PlanView& plan);
// The plan's own fields, tensors, states and outputs, each by itself (verify.cc).
PlanFault check_entries(const PlanView& plan);
// Operands, weights and states of each instruction against its definition (verify_operands.cc).
PlanFault check_operands(const PlanView& plan);
// Values of parameters (verify_params.cc).
PlanFault check_params(const PlanView& plan);
// Definition before use, liveness, placement and its totals (verify_memory.cc).
PlanFault check_memory(const PlanView& plan);

}  // namespace ingot

// The ExecutionPlan, read out of verified bytes. verify() is the only way to make one.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "../gen/abi.h"

namespace ingot {

inline constexpr uint32_t kNone = 0xffffffff;   // an absent operand, weight or state
inline constexpr uint32_t kPlanFormat = 1;      // plans/plan.ts PLAN_FORMAT
inline constexpr uint32_t kRuntimeVersion = 1;  // plans/plan.ts RUNTIME_VERSION

struct PlanRegister {
  std::string name;
  Space space;
  DType dtype;
  uint32_t width, stride;
  uint64_t offset;
  uint32_t first, last;
};

struct PlanTensor {
  std::string name;
  DType dtype;
  Layout layout;
  uint32_t rows, cols;
  uint64_t bytes;
};

struct PlanState {
  std::string name;
  StateKind kind;
  DType dtype;
  uint64_t size_bytes;
  uint32_t align_bytes;
  bool zero_init;
  uint32_t block_tokens, lifecycle, rewind;
  uint8_t fork;
};

struct PlanOperand { uint32_t reg, column, width; };
struct PlanStateUse { uint32_t state; StateAccess access; };

struct PlanInstruction {
  uint16_t opcode, version;
  std::vector<PlanOperand> inputs;    // all by position of the opcode's definition; reg kNone: absent
  std::vector<uint32_t> outputs;
  std::vector<uint32_t> weights;      // kNone: absent
  std::vector<PlanStateUse> states;   // state kNone: absent
  std::vector<std::byte> params;      // the opcode's Params struct, fields of newer minors at their defaults
  uint32_t last_use;
  std::string label;
};

struct PlanOutput { std::string name; uint32_t reg; };

struct PlanView {
  std::string model;
  uint32_t vocab, hidden, max_context;
  std::vector<PlanRegister> registers;
  std::vector<PlanTensor> tensors;
  std::vector<PlanState> states;
  std::vector<PlanInstruction> instructions;
  std::vector<PlanOutput> outputs;
  uint64_t peak[kSpaces], lower_bound[kSpaces];  // bytes per row of capacity
};

// Why a plan is refused. `rule` is a stable name; `where` names an instruction, register, tensor, state or byte.
struct PlanFault {
  std::string rule;  // empty: sound
  std::string where;
  std::string reason;
  uint32_t min_runtime = 0;  // set when the plan needs a newer runtime

  explicit operator bool() const { return !rule.empty(); }
};

// Checks every rule on untrusted bytes and, when all hold, fills `out`. Reads no byte outside `bytes`, allocates no more
// than a small multiple of its size, and never throws.
[[nodiscard]] PlanFault verify(std::span<const std::byte> bytes, PlanView& out) noexcept;

}  // namespace ingot

// The step buffer of abi/step.ts, checked: after read_step succeeds, no kernel can leave its memory by following it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "kernel.h"
#include "status.h"

namespace ingot {

// Capacities fixed when a model is opened.
struct StepLimits {
  uint32_t tokens, rows, sequences, blocks_per_sequence;
};

// What the indices of a step may name.
struct StepBounds {
  StepLimits limits;
  uint32_t vocab, max_context;
  uint32_t block_tokens;  // 0: the plan has no paged state
  uint32_t blocks, slots;
  uint32_t logits_width;                 // elements of a row; 0: the plan has no such output
  uint32_t hidden_width;
  Space hidden_space = Space::rows;      // a pooled hidden state has a row a sequence
};

// What a step that follows another may take from it.
struct Previous {
  bool succeeded = false;
  std::span<const int32_t> sampled;  // token of each row; -1: none
  std::span<int32_t> ids;            // room for the ids of all tokens of a step, references resolved
};

struct StepView {
  Step step{};
  std::span<const CopyPair> copies;
  std::span<const int32_t> resets;
  ResultHeader* header = nullptr;
  std::byte* rows = nullptr;   // (rows) RowResult with its alternatives
  float* logits = nullptr;     // (rows, logits_width), or nullptr
  float* hidden = nullptr;     // (rows of hidden_space, hidden_width), or nullptr
};

inline constexpr size_t kResultRowsOffset = 64;

inline uint32_t count_of(const Step& step, Space space) {
  return space == Space::tokens ? step.tokens : space == Space::rows ? step.rows : step.sequences;
}

// Fault STEP_FAILED names the field and index that is wrong. `bytes` and `result` start at multiples of 8.
// The ids of `out` lie in `previous.ids` where the step follows another, else in `bytes`.
Fault read_step(std::span<const std::byte> bytes, std::span<std::byte> result, const StepBounds& bounds,
                const Previous& previous, StepView& out);

}  // namespace ingot

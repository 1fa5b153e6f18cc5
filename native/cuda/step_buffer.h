// A step's arrays on their way to the device: packed behind each other, so that one copy takes them all.
#pragma once
#include "../core/step_view.h"
#include "kernel.h"

namespace ingot::cuda {

// Counts that a launch is made for; those of a captured bucket may exceed the step's.
struct Counts {
  uint32_t tokens, sequences, rows;
  uint32_t blocks;            // of each sequence's table
  uint32_t history, biases;   // entries
  uint32_t copies;            // of state units
};

// Byte offsets of each array.
struct StepLayout {
  size_t token_ids, positions, token_sequence, sequence_start, sequence_length, sequence_slot, row_token, sampling,
      block_table, history_ids, bias_entries, copies, bytes;
  explicit StepLayout(const Counts& counts);
};

// The arrays at `base`, as kernels see them.
DeviceStep step_at(const Counts& counts, std::byte* base);
// Writes the arrays to `base`. Sequences, tokens and rows beyond the step's own are padding: see DeviceStep.
void pack_step(const Step& step, const Counts& counts, std::byte* base);

}  // namespace ingot::cuda

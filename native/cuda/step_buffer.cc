#include "step_buffer.h"

#include <algorithm>
#include <cstring>

namespace ingot::cuda {

StepLayout::StepLayout(const Counts& c) {
  constexpr size_t kAlign = 16;
  size_t end = 0;
  const auto place = [&](size_t& offset, size_t count, size_t bytes) {
    offset = end;
    end = (end + count * bytes + kAlign - 1) / kAlign * kAlign;
  };
  place(token_ids, c.tokens, sizeof(int32_t));
  place(positions, c.tokens, sizeof(int32_t));
  place(token_sequence, c.tokens, sizeof(int32_t));
  place(sequence_start, size_t{c.sequences} + 1, sizeof(int32_t));
  place(sequence_length, c.sequences, sizeof(int32_t));
  place(sequence_slot, c.sequences, sizeof(int32_t));
  place(row_token, c.rows, sizeof(int32_t));
  place(sampling, c.rows, sizeof(SampleParams));
  place(block_table, size_t{c.sequences} * c.blocks, sizeof(int32_t));
  place(history_ids, c.history, sizeof(int32_t));
  place(bias_entries, c.biases, sizeof(BiasEntry));
  place(copies, c.copies, sizeof(CopyPair));
  bytes = end;
}

DeviceStep step_at(const Counts& counts, std::byte* base) {
  const StepLayout at(counts);
  const auto ints = [&](size_t offset) { return reinterpret_cast<const int32_t*>(base + offset); };
  DeviceStep step{};
  step.tokens = counts.tokens;
  step.sequences = counts.sequences;
  step.rows = counts.rows;
  step.blocks_per_sequence = counts.blocks;
  step.token_ids = ints(at.token_ids);
  step.positions = ints(at.positions);
  step.token_sequence = ints(at.token_sequence);
  step.sequence_start = ints(at.sequence_start);
  step.sequence_length = ints(at.sequence_length);
  step.sequence_slot = ints(at.sequence_slot);
  step.block_table = ints(at.block_table);
  step.row_token = ints(at.row_token);
  step.sampling = reinterpret_cast<const SampleParams*>(base + at.sampling);
  step.history_ids = ints(at.history_ids);
  step.bias_entries = reinterpret_cast<const BiasEntry*>(base + at.bias_entries);
  return step;
}

void pack_step(const Step& step, const Counts& counts, std::byte* base) {
  const StepLayout at(counts);
  const auto ints = [&](size_t offset) { return reinterpret_cast<int32_t*>(base + offset); };
  // Copies what there is; `rest` gives the padding after it.
  const auto put = [&](size_t offset, const int32_t* from, uint32_t has, uint32_t wants, auto rest) {
    int32_t* to = ints(offset);
    std::memcpy(to, from, has * sizeof(int32_t));
    for (uint32_t i = has; i < wants; ++i) to[i] = int32_t(rest(i));
  };
  const auto zero = [](uint32_t) { return 0; };
  const auto index = [](uint32_t i) { return i; };
  put(at.token_ids, step.token_ids, step.tokens, counts.tokens, zero);
  put(at.positions, step.positions, step.tokens, counts.tokens, zero);
  put(at.token_sequence, step.token_sequence, step.tokens, counts.tokens, index);
  put(at.sequence_start, step.sequence_start, step.sequences + 1, counts.sequences + 1, index);
  put(at.sequence_length, step.sequence_length, step.sequences, counts.sequences, [](uint32_t) { return 1; });
  put(at.sequence_slot, step.sequence_slot, step.sequences, counts.sequences, zero);
  put(at.row_token, step.row_token, step.rows, counts.rows, index);
  auto* sampling = reinterpret_cast<SampleParams*>(base + at.sampling);
  std::memcpy(sampling, step.sampling, step.rows * sizeof(SampleParams));
  SampleParams greedy{};
  greedy.top_p = greedy.repetition_penalty = 1;
  std::fill(sampling + step.rows, sampling + counts.rows, greedy);
  int32_t* table = ints(at.block_table);
  const uint32_t blocks = std::min(counts.blocks, step.blocks_per_sequence);
  for (uint32_t s = 0; s < counts.sequences; ++s, table += counts.blocks) {
    const uint32_t known = s < step.sequences ? blocks : 0;
    if (known) std::memcpy(table, step.block_table + size_t{s} * step.blocks_per_sequence, known * sizeof(int32_t));
    std::fill(table + known, table + counts.blocks, 0);
  }
  std::memcpy(ints(at.history_ids), step.history_ids, counts.history * sizeof(int32_t));
  std::memcpy(base + at.bias_entries, step.bias_entries, counts.biases * sizeof(BiasEntry));
}

}  // namespace ingot::cuda

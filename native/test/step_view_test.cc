// A sound step buffer is read; a mutated one is refused, or is still one that no kernel can leave its memory by.
#include "../core/step_view.h"

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"

using namespace ingot;

namespace {

const StepBounds kBounds{{16, 4, 4, 3}, 100, 90, 32, 10, 5, 100, 8, Space::rows};

// Two sequences, of 3 tokens at positions 30 to 32 and of 1 token at 0; two rows.
struct Sample {
  std::vector<std::byte> bytes;
  std::vector<std::byte> result = std::vector<std::byte>(4096);
  StepHeader header{};

  template <class T>
  uint32_t put(const std::vector<T>& values) {
    const size_t offset = (bytes.size() + 63) / 64 * 64;
    bytes.resize(offset + values.size() * sizeof(T));
    std::memcpy(bytes.data() + offset, values.data(), values.size() * sizeof(T));
    return uint32_t(offset);
  }
  using Ints = std::vector<int32_t>;

  Sample() {
    bytes.resize(sizeof(StepHeader));
    header.version = kStepVersion;
    header.tokens = 4;
    header.sequences = header.rows = 2;
    header.copies = header.resets = 1;
    header.blocks_per_sequence = 3;
    header.history = 4;
    header.biases = 2;
    header.token_ids = put(Ints{5, 99, 0, 7});
    header.positions = put(Ints{30, 31, 32, 0});
    header.token_sequence = put(Ints{0, 0, 0, 1});
    header.sequence_start = put(Ints{0, 3, 4});
    header.sequence_length = put(Ints{33, 1});
    header.sequence_slot = put(Ints{1, 4});
    header.block_table = put(Ints{1, 2, -1, 9, -1, -1});  // entries that no position needs are not read
    header.row_token = put(Ints{2, 3});
    SampleParams p{};
    p.flags = kSampleFlagSample;
    p.temperature = 0.7f;
    p.top_p = p.repetition_penalty = 1;
    p.history_count = 4;
    p.history_prompt = 2;
    p.bias_count = 2;
    header.sampling = put(std::vector<SampleParams>{p, p});
    header.history_ids = put(Ints{1, 2, 3, 99});
    header.bias_entries = put(std::vector<BiasEntry>{{1, 2.5f}, {99, -std::numeric_limits<float>::infinity()}});
    header.copy_pairs = put(std::vector<CopyPair>{{1, 9}});
    header.reset_slots = put(Ints{4});
    header.result_logits = 512;
    header.result_hidden = 2048;
  }

  // Follows a step whose rows sampled these tokens.
  std::vector<int32_t> sampled = {42, -1, 99}, ids = std::vector<int32_t>(kBounds.limits.tokens);
  Previous previous() { return {true, sampled, ids}; }

  Fault read(StepView& view) { return read(view, previous()); }
  Fault read(StepView& view, const Previous& previous) {
    std::memcpy(bytes.data(), &header, sizeof header);
    return read_step(bytes, result, kBounds, previous, view);
  }
  template <class T>
  T& at(uint32_t offset, size_t i) { return reinterpret_cast<T*>(bytes.data() + offset)[i]; }
};

void reads_a_sound_step() {
  Sample sample;
  StepView view;
  CHECK(!sample.read(view));
  CHECK(view.step.tokens == 4 && view.step.token_ids[1] == 99 && view.step.positions[2] == 32);
  CHECK(view.step.sampling[1].history_count == 4 && view.step.bias_entries[1].token == 99);
  CHECK(view.copies.size() == 1 && view.copies[0].target == 9 && view.resets[0] == 4);
  CHECK(view.rows == sample.result.data() + kResultRowsOffset);
  CHECK(reinterpret_cast<std::byte*>(view.logits) == sample.result.data() + 512);
  CHECK(reinterpret_cast<std::byte*>(view.hidden) == sample.result.data() + 2048);
}

// What a row of the step before sampled stands in for the reference, and the buffer is left as it is.
void follows_a_step() {
  Sample sample;
  sample.header.follows = 1;
  auto* ids = &sample.at<int32_t>(sample.header.token_ids, 0);
  ids[2] = -1;
  ids[3] = -3;
  StepView view;
  CHECK(!sample.read(view));
  CHECK(view.step.token_ids[0] == 5 && view.step.token_ids[1] == 99);
  CHECK(view.step.token_ids[2] == 42 && view.step.token_ids[3] == 99 && ids[3] == -3);
  const auto refusal = [&](const Previous& previous) {
    const Fault fault = sample.read(view, previous);
    CHECK(fault.code == "STEP_FAILED");
    return std::get<std::string>(fault.details[0].second);
  };
  CHECK(refusal({}) == "step.follows" && refusal({false, sample.sampled, sample.ids}) == "step.follows");
  CHECK(refusal({true, {}, sample.ids}) == "step.token_ids[2]");
  sample.sampled[2] = kBounds.vocab;
  CHECK(refusal(sample.previous()) == "step.token_ids[3]");
  ids[2] = ids[3] = 7;  // it names nothing, but follows
  CHECK(!sample.read(view, {true, {}, sample.ids}) && refusal({}) == "step.follows");
}

void reads_an_empty_step() {
  Sample sample;
  StepHeader& h = sample.header;
  h.tokens = h.sequences = h.rows = h.history = h.biases = 0;
  sample.header.result_logits = sample.header.result_hidden = 0;
  StepView view;
  CHECK(!sample.read(view));
  CHECK(view.step.tokens == 0 && !view.logits && !view.hidden);
}

void ignores_sampling_of_unsampled_rows() {
  Sample sample;
  sample.at<SampleParams>(sample.header.sampling, 0) = {};
  StepView view;
  CHECK(!sample.read(view));
  CHECK(view.step.sampling[0].flags == 0);
}

void names_what_is_wrong() {
  using Change = std::function<void(Sample&)>;
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  const auto params = [](auto field, auto value) {
    return [=](Sample& s) { s.at<SampleParams>(s.header.sampling, 1).*field = value; };
  };
  const auto entry = [](auto section, size_t i, int32_t value) {
    return [=](Sample& s) { s.at<int32_t>(s.header.*section, i) = value; };
  };
  const auto head = [](auto field, uint32_t value) { return [=](Sample& s) { s.header.*field = value; }; };
  using H = StepHeader;
  using P = SampleParams;
  const auto named = [](size_t i, int32_t id, uint32_t follows) {
    return [=](Sample& s) { s.at<int32_t>(s.header.token_ids, i) = id, s.header.follows = follows; };
  };
  const struct { const char* where; Change change; } cases[] = {
      {"step.version", head(&H::version, kStepVersion - 1)},
      {"step.follows", head(&H::follows, 2)},
      {"step.follows", head(&H::follows, 0xffffffff)},
      {"step.token_ids[3]", named(3, -1, 0)},
      {"step.token_ids[1]", named(1, -2, 1)},
      {"step.token_ids[1]", named(1, -4, 1)},
      {"step.token_ids[3]", named(3, INT32_MIN, 1)},
      {"step.token_ids[3]", named(3, 100, 1)},
      {"step.tokens", head(&H::tokens, 17)},
      {"step.rows", head(&H::rows, 5)},
      {"step.sequences", head(&H::sequences, 0xffffffff)},
      {"step.blocks_per_sequence", head(&H::blocks_per_sequence, 4)},
      {"step.token_ids", head(&H::token_ids, 0)},
      {"step.token_ids", head(&H::token_ids, 98)},
      {"step.positions", head(&H::positions, 0xfffffffc)},
      {"step.history_ids", head(&H::history, 0xffffffff)},
      {"step.bias_entries", head(&H::biases, 0x20000000)},
      {"step.copy_pairs", head(&H::copies, 0x20000001)},
      {"step.reset_slots", head(&H::resets, 0x40000001)},
      {"step.token_ids[1]", entry(&H::token_ids, 1, 100)},
      {"step.token_ids[3]", entry(&H::token_ids, 3, -1)},
      {"step.positions[1]", entry(&H::positions, 1, 30)},
      {"step.positions[3]", entry(&H::positions, 3, -1)},
      {"step.token_sequence[3]", entry(&H::token_sequence, 3, 0)},
      {"step.sequence_start[0]", entry(&H::sequence_start, 0, 1)},
      {"step.sequence_start[1]", entry(&H::sequence_start, 1, 0)},
      {"step.sequence_start[2]", entry(&H::sequence_start, 2, 5)},
      {"step.sequence_start[2]", entry(&H::sequence_start, 2, 3)},
      {"step.sequence_length[0]", entry(&H::sequence_length, 0, 2)},
      {"step.sequence_length[0]", entry(&H::sequence_length, 0, 91)},
      {"step.sequence_length[1]", entry(&H::sequence_length, 1, -1)},
      {"step.sequence_slot[1]", entry(&H::sequence_slot, 1, 5)},
      {"step.block_table[1]", entry(&H::block_table, 1, 10)},
      {"step.block_table[3]", entry(&H::block_table, 3, -1)},
      {"step.row_token[0]", entry(&H::row_token, 0, 4)},
      {"step.history_ids[3]", entry(&H::history_ids, 3, 100)},
      {"step.bias_entries[1]", entry(&H::bias_entries, 2, 100)},
      {"step.bias_entries[0]", [=](Sample& s) { s.at<float>(s.header.bias_entries, 1) = nan; }},
      {"step.bias_entries[0]", [=](Sample& s) { s.at<float>(s.header.bias_entries, 1) = infinity; }},
      {"step.copy_pairs[0]", entry(&H::copy_pairs, 1, 10)},
      {"step.reset_slots[0]", entry(&H::reset_slots, 0, 5)},
      {"step.sampling[1]", params(&P::flags, 16u)},
      {"step.sampling[1]", params(&P::temperature, -1.f)},
      {"step.sampling[1]", params(&P::temperature, nan)},
      {"step.sampling[1]", params(&P::temperature, infinity)},
      {"step.sampling[1]", params(&P::top_p, 0.f)},
      {"step.sampling[1]", params(&P::top_p, nan)},
      {"step.sampling[1]", params(&P::min_p, 1.5f)},
      {"step.sampling[1]", params(&P::repetition_penalty, 0.f)},
      {"step.sampling[1]", params(&P::presence_penalty, infinity)},
      {"step.sampling[1]", params(&P::frequency_penalty, nan)},
      {"step.sampling[1]", params(&P::history_start, 0xffffffffu)},
      {"step.sampling[1]", params(&P::history_prompt, 5u)},
      {"step.sampling[1]", params(&P::bias_count, 3u)},
      {"step.sampling[1]", params(&P::top_logprobs, 21u)},
      {"step.result_logits", head(&H::result_logits, 64)},
      {"step.result_logits", head(&H::result_logits, 3300)},
      {"step.result_hidden", head(&H::result_hidden, 4094)},
      {"step.result_hidden", head(&H::result_hidden, 0xfffffffc)},
      {"step.rows", [](Sample& s) { s.result.resize(kResultRowsOffset + 2 * kRowResultBytes - 1); }},
      {"step.buffer", [](Sample& s) { s.bytes.resize(0); s.bytes.shrink_to_fit(); }},
  };
  for (const auto& [where, change] : cases) {
    Sample sample;
    change(sample);
    StepView view;
    const Fault fault = sample.bytes.empty() ? read_step({}, sample.result, kBounds, {}, view) : sample.read(view);
    if (fault.code != "STEP_FAILED" || std::get<std::string>(fault.details[0].second) != where)
      std::fprintf(stderr, "expected a fault at %s\n", where);
    CHECK(fault.code == "STEP_FAILED");
    CHECK(std::get<std::string>(fault.details[0].second) == where);
    CHECK(!std::get<std::string>(fault.details[1].second).empty());
  }
}

void needs_outputs_that_are_asked_for() {
  StepBounds bounds = kBounds;
  bounds.logits_width = 0;
  Sample sample;
  StepView view;
  CHECK(!sample.read(view));
  CHECK(read_step(sample.bytes, sample.result, bounds, {}, view));
}

// Follows every index as a kernel does.
uint64_t follow(const StepView& view, const std::vector<std::byte>& blocks) {
  const Step& s = view.step;
  uint64_t sum = 0;
  for (uint32_t t = 0; t < s.tokens; ++t) {
    CHECK(s.token_ids[t] >= 0 && uint32_t(s.token_ids[t]) < kBounds.vocab);
    const size_t row = size_t(s.token_sequence[t]) * s.blocks_per_sequence;
    sum += uint64_t(blocks.at(size_t(s.block_table[row + size_t(s.positions[t]) / kBounds.block_tokens])));
  }
  for (uint32_t q = 0; q < s.sequences; ++q) CHECK(uint32_t(s.sequence_slot[q]) < kBounds.slots);
  for (uint32_t r = 0; r < s.rows; ++r) {
    sum += uint64_t(s.token_ids[s.row_token[r]]);
    const SampleParams& p = s.sampling[r];
    for (uint32_t i = 0; i < p.history_count; ++i) CHECK(uint32_t(s.history_ids[p.history_start + i]) < kBounds.vocab);
    for (uint32_t i = 0; i < p.bias_count; ++i) CHECK(s.bias_entries[p.bias_start + i].token < kBounds.vocab);
  }
  for (const CopyPair& pair : view.copies) CHECK(pair.source < kBounds.blocks && pair.target < kBounds.blocks);
  for (int32_t slot : view.resets) CHECK(uint32_t(slot) < kBounds.slots);
  if (view.rows) std::memset(view.rows, 1, size_t{s.rows} * kRowResultBytes);
  if (view.logits) std::fill_n(view.logits, size_t{s.rows} * kBounds.logits_width, 1.f);
  if (view.hidden) std::fill_n(view.hidden, size_t{s.rows} * kBounds.hidden_width, 1.f);
  return sum;
}

void survives_mutations() {
  std::mt19937 random(1);
  const auto below = [&](size_t n) { return size_t(random() % n); };
  const std::vector<std::byte> blocks(kBounds.blocks);
  const Sample sound;
  size_t accepted = 0;
  for (int round = 0; round < 200000; ++round) {
    Sample sample = sound;
    sample.header.follows = round % 2;
    if (sample.header.follows)
      for (const size_t i : {0, 3}) sample.at<int32_t>(sample.header.token_ids, i) = i ? -3 : -1;
    std::memcpy(sample.bytes.data(), &sample.header, sizeof sample.header);
    for (size_t edits = 1 + below(3); edits > 0; --edits) {
      const size_t word = below(2) ? below(sizeof(StepHeader) / 4) : below(sample.bytes.size() / 4);
      uint32_t& value = sample.at<uint32_t>(0, word);
      const uint32_t choices[] = {value + 1, value - 1, value ^ (1u << below(32)), uint32_t(random()), 0, 0x7fffffff,
                                  0xffffffff, uint32_t(below(sample.bytes.size()))};
      value = choices[below(8)];
    }
    if (below(8) == 0) sample.bytes.resize(below(sample.bytes.size()));
    if (below(8) == 0) sample.result.resize(below(sample.result.size()));
    sample.bytes.shrink_to_fit();
    sample.result.shrink_to_fit();
    StepView view;
    if (read_step(sample.bytes, sample.result, kBounds, sample.previous(), view)) continue;
    ++accepted;
    CHECK(follow(view, blocks) < UINT64_MAX);
  }
  CHECK(accepted > 1000 && accepted < 150000);
}

}  // namespace

int main() {
  reads_a_sound_step();
  follows_a_step();
  reads_an_empty_step();
  ignores_sampling_of_unsampled_rows();
  names_what_is_wrong();
  needs_outputs_that_are_asked_for();
  survives_mutations();
}

#include "step_view.h"

#include <cmath>
#include <cstring>
#include <string>

namespace ingot {
namespace {

constexpr float kLarge = 3.4028234663852886e38f;

// Collects the first fault; every check returns whether the step is still sound.
class Checker {
 public:
  Checker(std::span<const std::byte> bytes, const StepBounds& bounds, const Previous& previous)
      : bytes_(bytes), bounds_(bounds), previous_(previous) {}

  bool read(std::span<std::byte> result, StepView& out) {
    return read_header() && read_arrays(out) && check_sequences(out.step) && check_tokens(out.step) &&
           check_rows(out.step) && check_units(out) && read_result(result, out);
  }
  Fault fault;

 private:
  bool refuse(std::string where, std::string reason) {
    fault = {"STEP_FAILED", {{"where", "step." + where}, {"reason", std::move(reason)}}};
    return false;
  }

  static std::string at(const char* array, size_t index) {
    return std::string(array) + "[" + std::to_string(index) + "]";
  }

  // 0 <= value < end
  bool index(const char* array, size_t i, int64_t value, uint64_t end) {
    if (value >= 0 && uint64_t(value) < end) return true;
    return refuse(at(array, i), "expected an index below " + std::to_string(end) + ", got " + std::to_string(value));
  }

  bool equal(const char* array, size_t i, int64_t expected, int64_t got) {
    if (expected == got) return true;
    return refuse(at(array, i), "expected " + std::to_string(expected) + ", got " + std::to_string(got));
  }

  bool at_most(const char* name, uint32_t value, uint32_t limit) {
    if (value <= limit) return true;
    return refuse(name, "expected at most " + std::to_string(limit) + ", got " + std::to_string(value));
  }

  bool read_header() {
    if (bytes_.size() < sizeof header_)
      return refuse("buffer", "expected at least " + std::to_string(sizeof header_) + " bytes, got " +
                                  std::to_string(bytes_.size()));
    std::memcpy(&header_, bytes_.data(), sizeof header_);
    if (header_.version != kStepVersion)
      return refuse("version", "expected " + std::to_string(kStepVersion) + ", got " + std::to_string(header_.version));
    if (header_.follows > 1) return refuse("follows", "expected 0 or 1, got " + std::to_string(header_.follows));
    if (header_.follows && !previous_.succeeded) return refuse("follows", "the step before it failed, or there was none");
    const StepLimits& limits = bounds_.limits;
    return at_most("tokens", header_.tokens, limits.tokens) && at_most("rows", header_.rows, limits.rows) &&
           at_most("sequences", header_.sequences, limits.sequences) &&
           at_most("blocks_per_sequence", header_.blocks_per_sequence, limits.blocks_per_sequence);
  }

  template <class T>
  bool array(const char* name, uint32_t offset, uint64_t count, const T*& out) {
    out = reinterpret_cast<const T*>(bytes_.data() + sizeof header_);
    if (count == 0) return true;
    if (offset % alignof(T) != 0 || offset < sizeof header_)
      return refuse(name, "offset " + std::to_string(offset) + " is not aligned or lies in the header");
    if (offset > bytes_.size() || count > (bytes_.size() - offset) / sizeof(T))
      return refuse(name, std::to_string(count) + " entries at offset " + std::to_string(offset) +
                              " leave the buffer of " + std::to_string(bytes_.size()) + " bytes");
    out = reinterpret_cast<const T*>(bytes_.data() + offset);
    return true;
  }

  bool read_arrays(StepView& out) {
    const StepHeader& h = header_;
    Step& s = out.step;
    s.tokens = h.tokens;
    s.sequences = h.sequences;
    s.rows = h.rows;
    s.blocks_per_sequence = h.blocks_per_sequence;
    const CopyPair* copies = nullptr;
    const int32_t* resets = nullptr;
    const uint64_t table = uint64_t{h.sequences} * h.blocks_per_sequence;
    const bool sound = array("token_ids", h.token_ids, h.tokens, s.token_ids) &&
                       array("positions", h.positions, h.tokens, s.positions) &&
                       array("token_sequence", h.token_sequence, h.tokens, s.token_sequence) &&
                       array("sequence_start", h.sequence_start, uint64_t{h.sequences} + 1, s.sequence_start) &&
                       array("sequence_length", h.sequence_length, h.sequences, s.sequence_length) &&
                       array("sequence_slot", h.sequence_slot, h.sequences, s.sequence_slot) &&
                       array("block_table", h.block_table, table, s.block_table) &&
                       array("row_token", h.row_token, h.rows, s.row_token) &&
                       array("sampling", h.sampling, h.rows, s.sampling) &&
                       array("history_ids", h.history_ids, h.history, s.history_ids) &&
                       array("bias_entries", h.bias_entries, h.biases, s.bias_entries) &&
                       array("copy_pairs", h.copy_pairs, h.copies, copies) &&
                       array("reset_slots", h.reset_slots, h.resets, resets);
    if (!sound) return false;
    out.copies = {copies, h.copies};
    out.resets = {resets, h.resets};
    return true;
  }

  // Sequences are contiguous, not empty, and cover all tokens; what they read of the states exists.
  bool check_sequences(const Step& s) {
    if (!equal("sequence_start", 0, 0, s.sequence_start[0])) return false;
    for (uint32_t i = 0; i < s.sequences; ++i) {
      const int64_t begin = s.sequence_start[i], end = s.sequence_start[i + 1];
      if (end <= begin || end > s.tokens)
        return refuse(at("sequence_start", i + 1), "expected more than " + std::to_string(begin) + " and at most " +
                                                       std::to_string(s.tokens) + ", got " + std::to_string(end));
      const int64_t length = s.sequence_length[i];
      if (length < end - begin || length > bounds_.max_context)
        return refuse(at("sequence_length", i), "expected " + std::to_string(end - begin) + " to " +
                                                    std::to_string(bounds_.max_context) + ", got " +
                                                    std::to_string(length));
      if (!index("sequence_slot", i, s.sequence_slot[i], bounds_.slots)) return false;
      if (!check_blocks(s, i, uint32_t(length))) return false;
    }
    return equal("sequence_start", s.sequences, s.tokens, s.sequence_start[s.sequences]);
  }

  bool check_blocks(const Step& s, uint32_t sequence, uint32_t length) {
    if (bounds_.block_tokens == 0) return true;
    const uint64_t needed = (uint64_t{length} + bounds_.block_tokens - 1) / bounds_.block_tokens;
    if (needed > s.blocks_per_sequence)
      return refuse(at("sequence_length", sequence), std::to_string(length) + " positions need " +
                                                         std::to_string(needed) + " blocks, a sequence has " +
                                                         std::to_string(s.blocks_per_sequence));
    const size_t first = size_t{sequence} * s.blocks_per_sequence;
    for (size_t i = first; i < first + needed; ++i)
      if (!index("block_table", i, s.block_table[i], bounds_.blocks)) return false;
    return true;
  }

  // Each token belongs to the sequence whose range holds it; positions are consecutive and end at its length.
  bool check_tokens(Step& s) {
    if (!resolve(s)) return false;
    for (uint32_t i = 0; i < s.sequences; ++i) {
      const int32_t end = s.sequence_start[i + 1];
      for (int32_t t = s.sequence_start[i]; t < end; ++t) {
        if (!equal("token_sequence", size_t(t), i, s.token_sequence[t]) ||
            !equal("positions", size_t(t), int64_t{s.sequence_length[i]} - (end - t), s.positions[t]))
          return false;
      }
    }
    return true;
  }

  // Every id is in the vocabulary: as it stands, or as the row that it names has sampled it.
  bool resolve(Step& s) {
    for (uint32_t t = 0; t < s.tokens; ++t) {
      const int32_t id = s.token_ids[t];
      if (!header_.follows) {
        if (!index("token_ids", t, id, bounds_.vocab)) return false;
        continue;
      }
      if (id < 0 && !check_reference(t, uint64_t(-1 - int64_t{id}))) return false;
      previous_.ids[t] = id < 0 ? previous_.sampled[size_t(-1 - id)] : id;
      if (!index("token_ids", t, previous_.ids[t], bounds_.vocab)) return false;
    }
    if (header_.follows) s.token_ids = previous_.ids.data();
    return true;
  }

  bool check_reference(uint32_t t, uint64_t row) {
    if (row >= previous_.sampled.size())
      return refuse(at("token_ids", t), "names row " + std::to_string(row) + " of the step before, which has " +
                                            std::to_string(previous_.sampled.size()));
    if (previous_.sampled[row] >= 0) return true;
    return refuse(at("token_ids", t), "names row " + std::to_string(row) + " of the step before, which has no token");
  }

  bool check_rows(const Step& s) {
    for (uint32_t r = 0; r < s.rows; ++r)
      if (!index("row_token", r, s.row_token[r], s.tokens) || !check_sampling(s.sampling[r], r)) return false;
    for (uint32_t i = 0; i < header_.history; ++i)
      if (!index("history_ids", i, s.history_ids[i], bounds_.vocab)) return false;
    for (uint32_t i = 0; i < header_.biases; ++i) {
      if (!index("bias_entries", i, s.bias_entries[i].token, bounds_.vocab)) return false;
      if (!(s.bias_entries[i].bias <= kLarge)) return refuse(at("bias_entries", i), "the bias is not a number below infinity");
    }
    return true;
  }

  // How a row that is not sampled would be is nobody's concern, but for the slices that it names.
  bool check_sampling(const SampleParams& p, uint32_t r) {
    const bool sampled = p.flags & kSampleFlagSample;
    const auto slice = [](uint32_t start, uint32_t count, uint32_t end) { return uint64_t{start} + count <= end; };
    const auto within = [](float value, float low, float high) { return value >= low && value <= high; };
    const char* wrong = nullptr;
    constexpr uint32_t flags = kSampleFlagSample | kSampleFlagLogits | kSampleFlagHidden | kSampleFlagLogprobs;
    if (p.flags & ~flags) wrong = "flags";
    else if (!slice(p.history_start, p.history_count, header_.history)) wrong = "history_start, history_count";
    else if (p.history_prompt > p.history_count) wrong = "history_prompt";
    else if (!slice(p.bias_start, p.bias_count, header_.biases)) wrong = "bias_start, bias_count";
    else if (p.top_logprobs > kTopLogprobs) wrong = "top_logprobs";
    else if (!sampled) return true;
    else if (!within(p.temperature, 0, kLarge)) wrong = "temperature";
    else if (!(p.top_p > 0 && p.top_p <= 1)) wrong = "top_p";
    else if (!within(p.min_p, 0, 1)) wrong = "min_p";
    else if (!(p.repetition_penalty > 0 && p.repetition_penalty <= kLarge)) wrong = "repetition_penalty";
    else if (!within(p.presence_penalty, -kLarge, kLarge)) wrong = "presence_penalty";
    else if (!within(p.frequency_penalty, -kLarge, kLarge)) wrong = "frequency_penalty";
    return !wrong || refuse(at("sampling", r), std::string(wrong) + " is out of range");
  }

  bool check_units(const StepView& view) {
    for (size_t i = 0; i < view.copies.size(); ++i)
      if (!index("copy_pairs", i, view.copies[i].source, bounds_.blocks) ||
          !index("copy_pairs", i, view.copies[i].target, bounds_.blocks))
        return false;
    for (size_t i = 0; i < view.resets.size(); ++i)
      if (!index("reset_slots", i, view.resets[i], bounds_.slots)) return false;
    return true;
  }

  bool floats(const char* name, uint32_t offset, uint64_t count, uint32_t width, std::span<std::byte> result,
              size_t from, float*& out) {
    if (offset == 0) return true;
    if (width == 0) return refuse(name, "the plan has no such output");
    if (offset % sizeof(float) != 0 || offset < from)
      return refuse(name, "offset " + std::to_string(offset) + " is not aligned or lies in the rows");
    if (offset > result.size() || count * width > (result.size() - offset) / sizeof(float))
      return refuse(name, std::to_string(count) + " rows of " + std::to_string(width) + " at offset " +
                              std::to_string(offset) + " leave the result buffer of " + std::to_string(result.size()) +
                              " bytes");
    out = reinterpret_cast<float*>(result.data() + offset);
    return true;
  }

  bool read_result(std::span<std::byte> result, StepView& out) {
    const size_t end = kResultRowsOffset + size_t{header_.rows} * kRowResultBytes;
    if (result.size() < end)
      return refuse("rows", std::to_string(header_.rows) + " rows need a result buffer of " + std::to_string(end) +
                                " bytes, got " + std::to_string(result.size()));
    out.header = reinterpret_cast<ResultHeader*>(result.data());
    out.rows = result.data() + kResultRowsOffset;
    const StepHeader& h = header_;
    const uint32_t hidden_rows = count_of(out.step, bounds_.hidden_space);
    return floats("result_logits", h.result_logits, h.rows, bounds_.logits_width, result, end, out.logits) &&
           floats("result_hidden", h.result_hidden, hidden_rows, bounds_.hidden_width, result, end, out.hidden);
  }

  std::span<const std::byte> bytes_;
  const StepBounds& bounds_;
  const Previous& previous_;
  StepHeader header_{};
};

}  // namespace

Fault read_step(std::span<const std::byte> bytes, std::span<std::byte> result, const StepBounds& bounds,
                const Previous& previous, StepView& out) {
  Checker checker(bytes, bounds, previous);
  out = {};
  checker.read(result, out);
  return std::move(checker.fault);
}

}  // namespace ingot

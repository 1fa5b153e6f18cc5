// The executor under kernels that compute nothing, and check what they are handed: every input still holds what its
// producer wrote, every weight and state can be read to its last byte.
#include "../core/model.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <thread>

#include "../core/thread_pool.h"
#include "check.h"

using namespace ingot;

namespace {

using Bytes = std::vector<std::byte>;

Bytes read_plan(const char* name) {
  std::ifstream file(std::string("native/test/plans/") + name, std::ios::binary);
  CHECK(file.good());
  const std::vector<char> chars{std::istreambuf_iterator<char>(file), {}};
  Bytes bytes(chars.size());
  std::memcpy(bytes.data(), chars.data(), chars.size());
  return bytes;
}

// What each live register holds: the number of the launch that wrote it, in every element.
std::map<const std::byte*, int32_t> written;
int32_t launch = 0;
constexpr uint32_t kCapacity = 6;

void write_rows(const Matrix& m) {
  const std::byte* end = m.data + kCapacity * m.stride;
  written.erase(written.lower_bound(m.data), written.lower_bound(end));
  written[m.data] = launch;
  for (uint32_t r = 0; r < m.rows; ++r) std::fill_n(m.row<int32_t>(r), m.width, launch);
}

void check_rows(const Matrix& m) {
  const int32_t expected = std::prev(written.upper_bound(m.data))->second;
  for (uint32_t r = 0; r < m.rows; ++r)
    for (uint32_t c = 0; c < m.width; ++c) CHECK(m.row<int32_t>(r)[c] == expected);
}

size_t touch(const Context& context, const Call& call) {
  CHECK(context.pool.threads() == 2);
  ++launch;
  size_t sum = 0;
  for (const Matrix& m : call.inputs) if (m) check_rows(m);
  for (const Weight& w : call.weights) if (w) sum += size_t(w.data[0]) + size_t(w.data[size_t{w.rows} * w.cols - 1]);
  char* scratch = context.scratch.take<char>(5000);
  std::memset(scratch, launch, 5000);
  for (const Matrix& m : call.outputs) if (m) write_rows(m);
  return sum;
}

// Marks the unit of each token: its block, or its slot.
void mark_states(const Step& step, const Call& call) {
  for (const State& state : call.states) {
    for (uint32_t t = 0; state && t < step.tokens; ++t) {
      const auto sequence = size_t(step.token_sequence[t]);
      const size_t block = sequence * step.blocks_per_sequence + size_t(step.positions[t]) / kBlockTokens;
      const auto unit = size_t(state.block_tokens > 1 ? step.block_table[block] : step.sequence_slot[sequence]);
      std::memset(state.base + unit * state.size, int(unit) + 1, state.size);
    }
  }
}

void fake(const Context& context, const Call& call) {
  CHECK(touch(context, call) == 0);
  mark_states(context.step, call);
}

void fake_sample(const Context& context, const Call& call) {
  fake(context, call);
  for (uint32_t r = 0; r < call.outputs[0].rows; ++r) {
    *call.outputs[0].row<int32_t>(r) = int32_t(100 + r);
    for (uint32_t i = 0; i <= kTopLogprobs; ++i) call.outputs[1].row<float>(r)[i] = -float(r) - float(i) / 32;
    for (uint32_t i = 0; i < kTopLogprobs; ++i) call.outputs[2].row<int32_t>(r)[i] = int32_t(i * 2 + r);
  }
}

KernelTable fake_table() {
  KernelTable table{"fake", {}};
  std::fill(std::begin(table.kernels), std::end(table.kernels), fake);
  table.kernels[op::sample::id] = fake_sample;
  return table;
}

// A plan with a weights file of zeros.
struct Package {
  Bytes plan;
  PlanView view;
  std::string path = "/tmp/ingot_model_test_XXXXXX";
  ModelOptions options{};

  explicit Package(const char* name) : plan(read_plan(name)) {
    CHECK(!verify(plan, view));
    const int file = mkstemp(path.data());
    CHECK(file >= 0);
    WeightFile weights{path, 0, {}};
    for (uint32_t i = 0; i < view.tensors.size(); ++i) {
      weights.bytes = (weights.bytes + 63) / 64 * 64;
      weights.tensors.push_back({i, weights.bytes, view.tensors[i].bytes});
      weights.bytes += view.tensors[i].bytes;
    }
    CHECK(ftruncate(file, off_t(weights.bytes)) == 0);
    close(file);
    options = {plan, {weights}, 2, {kCapacity, kCapacity, kCapacity, 4}, 7, 5};
  }
  ~Package() { unlink(path.c_str()); }

  std::unique_ptr<Model> open(const KernelTable& table) {
    std::unique_ptr<Model> model;
    CHECK(!Model::open(options, table, model));
    return model;
  }
  std::string refusal(const KernelTable& table = fake_table()) {
    std::unique_ptr<Model> model;
    const Fault fault = Model::open(options, table, model);
    CHECK(!model);
    return fault.code;
  }
};

// A step buffer of two sequences: two tokens at positions 31 and 32 in slot 1, and three from 0 in slot 4.
struct StepBytes {
  Bytes bytes = Bytes(2048), result = Bytes(16384);
  StepHeader& header = *reinterpret_cast<StepHeader*>(bytes.data());
  size_t end = 128;

  uint32_t put(std::initializer_list<int32_t> values) {
    const size_t offset = end;
    std::memcpy(bytes.data() + offset, values.begin(), values.size() * 4);
    end = (offset + values.size() * 4 + 63) / 64 * 64;
    return uint32_t(offset);
  }
  SampleParams& sampling(size_t r) { return reinterpret_cast<SampleParams*>(bytes.data() + header.sampling)[r]; }

  StepBytes() {
    header.version = kStepVersion;
    header.tokens = 5;
    header.sequences = header.rows = 2;
    header.blocks_per_sequence = 4;
    header.token_ids = put({1, 2, 3, 4, 5});
    header.positions = put({31, 32, 0, 1, 2});
    header.token_sequence = put({0, 0, 1, 1, 1});
    header.sequence_start = put({0, 2, 5});
    header.sequence_length = put({33, 3});
    header.sequence_slot = put({1, 4});
    header.block_table = put({2, 3, 0, 0, 5, 0, 0, 0});
    header.row_token = put({1, 4});
    header.copy_pairs = put({2, 6, 6, 1});
    header.reset_slots = put({3});
    header.sampling = uint32_t(end);
    SampleParams p{};
    p.flags = kSampleFlagSample | kSampleFlagLogprobs;
    p.top_p = p.repetition_penalty = 1;
    sampling(0) = sampling(1) = p;
  }
  const std::byte* row(size_t r) const { return result.data() + kResultRowsOffset + r * kRowResultBytes; }
  template <class T>
  T value(size_t offset) const {
    T value;
    std::memcpy(&value, result.data() + offset, sizeof value);
    return value;
  }
};

bool filled(std::span<const std::byte> bytes, int value) {
  CHECK(!bytes.empty());
  return std::all_of(bytes.begin(), bytes.end(), [&](std::byte b) { return b == std::byte(value); });
}

void runs_a_step() {
  Package package("decoder.bin");
  const auto model = package.open(fake_table());
  StepBytes step;
  launch = 0;
  CHECK(!model->step(step.bytes, step.result));
  CHECK(step.value<uint32_t>(0) == 2);
  const size_t instructions = package.view.instructions.size();
  CHECK(step.value<uint32_t>(4) == instructions && size_t(launch) == instructions);
  for (uint32_t r = 0; r < 2; ++r) {
    const size_t at = size_t(step.row(r) - step.result.data());
    CHECK(step.value<int32_t>(at) == int32_t(100 + r) && step.value<float>(at + 4) == -float(r));
    CHECK(step.value<int32_t>(at + 8) == int32_t(r) && step.value<int32_t>(at + 8 + 19 * 4) == int32_t(38 + r));
    CHECK(step.value<float>(at + 88) == -float(r) - 1.f / 32);
    CHECK(step.value<float>(at + 88 + 76) == -float(r) - 20.f / 32);
  }
  for (uint32_t s = 0; s < package.view.states.size(); ++s)
    for (uint32_t unit : {2, 3, 5}) CHECK(filled(model->unit(s, unit), int(unit) + 1));
  CHECK(model->unit(0, 7).empty() && model->unit(99, 0).empty());
  const MemoryUse use = model->memory();
  CHECK(use.weights > 0 && use.arena > 0 && use.scratch >= 5000);
  CHECK(use.state >= 7 * package.view.states[0].size_bytes * package.view.states.size());
}

constexpr uint32_t kStepRows[] = {5, 2, 2};  // of each space, in a StepBytes

size_t trace_bytes(const PlanView& view) {
  size_t bytes = 0;
  for (const PlanInstruction& instruction : view.instructions)
    for (const uint32_t reg : instruction.outputs)
      bytes += kStepRows[size_t(view.registers[reg].space)] * size_t{view.registers[reg].width} * 4;
  return bytes;
}

// The rows of every output, in the plan's order, into a buffer that holds just those.
void traces_what_is_written() {
  Package package("decoder.bin");
  const auto model = package.open(fake_table());
  StepBytes step;
  const size_t bytes = trace_bytes(package.view);
  Bytes trace(bytes);
  launch = 0;
  CHECK(!model->step(step.bytes, step.result, trace));
  const auto* at = reinterpret_cast<const int32_t*>(trace.data());
  for (size_t i = 0; i < package.view.instructions.size(); ++i) {
    const PlanInstruction& instruction = package.view.instructions[i];
    for (const uint32_t reg : instruction.outputs) {
      const PlanRegister& r = package.view.registers[reg];
      for (uint32_t n = 0; n < kStepRows[size_t(r.space)] * r.width; ++n, ++at)
        CHECK(instruction.opcode == op::sample::id || *at == int32_t(i + 1));
    }
  }
  CHECK(reinterpret_cast<const std::byte*>(at) == trace.data() + trace.size());
  for (const size_t wrong : {bytes - 4, bytes + 4, size_t{1}}) {
    Bytes other(wrong);
    launch = 0;
    CHECK(model->step(step.bytes, step.result, other).code == "STEP_FAILED" && launch == 0);
  }
  CHECK(!model->step(step.bytes, step.result));
}

// Logits, hidden states and logprobs are for the rows that want them, and a row that is not sampled has no token.
void copies_what_rows_want() {
  Package package("decoder.bin");
  const auto model = package.open(fake_table());
  StepBytes step;
  step.sampling(1).flags = kSampleFlagLogits;
  step.header.result_logits = 1024;
  step.header.result_hidden = 8192;
  CHECK(!model->step(step.bytes, step.result));
  CHECK(step.value<int32_t>(size_t(step.row(0) - step.result.data())) == 100);
  const size_t at = size_t(step.row(1) - step.result.data());
  CHECK(step.value<int32_t>(at) == -1 && step.value<float>(at + 4) == 0 && step.value<int32_t>(at + 8) == -1);
  const uint32_t width = package.view.vocab;
  CHECK(filled({step.result.data() + 1024, width * 4}, 0));
  for (uint32_t i = 0; i < width; ++i) CHECK(step.value<int32_t>(1024 + (width + i) * 4) == launch - 1);
  CHECK(filled({step.result.data() + 8192, package.view.hidden * 8}, 0));
  // The fake reports logprobs to everybody.
  step.sampling(1).flags = kSampleFlagSample;
  CHECK(!model->step(step.bytes, step.result));
  CHECK(step.value<int32_t>(at) == 101 && step.value<float>(at + 4) == 0 && step.value<int32_t>(at + 8) == -1);
}

// Without rows there are no logits to compute; without tokens nothing runs, but copies and resets are made.
void skips_what_has_no_rows() {
  Package package("decoder.bin");
  const auto model = package.open(fake_table());
  StepBytes step;
  step.header.rows = 0;
  CHECK(!model->step(step.bytes, step.result));
  size_t tail = 0;
  for (const auto& i : package.view.instructions) tail += package.view.registers[i.outputs[0]].space == Space::rows;
  CHECK(tail > 0 && step.value<uint32_t>(4) == package.view.instructions.size() - tail);
  step.header.tokens = step.header.sequences = 0;
  step.header.copies = 2;
  CHECK(!model->step(step.bytes, step.result));
  CHECK(step.value<uint32_t>(4) == 0);
  for (uint32_t s = 0; s < package.view.states.size(); ++s) {
    CHECK(filled(model->unit(s, 6), 3) && filled(model->unit(s, 1), 3));  // 2 into 6, then 6 into 1
    CHECK(filled(model->unit(s, 3), 4) && filled(model->unit(s, 4), 0));
  }
}

// Neighbours of one kernel know of each other where a register passes between them alone, and hear of traces. In this
// plan glu reads gate and up, two parts of what a linear writes, and a linear alone what glu writes.
void links_neighbours() {
  Package package("decoder.bin");
  static std::vector<const Call*> calls;
  static bool traced;
  KernelTable table = fake_table();
  table.kernels[op::linear::id] = table.kernels[op::glu::id] = [](const Context& context, const Call& call) {
    calls.push_back(&call);
    traced = context.traced;
    fake(context, call);
  };
  const auto model = package.open(table);
  StepBytes step;
  CHECK(!model->step(step.bytes, step.result) && !traced);
  size_t at = 0, links = 0;
  for (const PlanInstruction& instruction : package.view.instructions) {
    if (instruction.opcode != op::linear::id && instruction.opcode != op::glu::id) continue;
    const Call& call = *calls[at++];
    const bool glu = instruction.opcode == op::glu::id;
    CHECK((call.reader != nullptr) == glu);
    if (glu) CHECK(call.reader == calls[at] && call.reader->writer == &call && ++links);
    else CHECK(!call.writer || call.writer->reader == &call);
  }
  CHECK(at == calls.size() && links == 2);
  Bytes trace(trace_bytes(package.view));
  CHECK(!model->step(step.bytes, step.result, trace) && traced);
}

void tallies_when_asked() {
  Package package("decoder.bin");
  const auto model = package.open(fake_table());
  StepBytes step;
  CHECK(!model->step(step.bytes, step.result) && !model->tally());
  model->set_tally(true);
  CHECK(!model->step(step.bytes, step.result));
  const uint32_t launches = step.value<uint32_t>(4), rows = step.header.rows;
  step.header.rows = 0;
  CHECK(!model->step(step.bytes, step.result));
  const bool decodes = step.header.tokens == step.header.sequences;
  const Tally::Steps& counted = model->tally()->phases[size_t(decodes ? Phase::decode : Phase::prefill)];
  CHECK(model->tally()->phases[size_t(decodes ? Phase::prefill : Phase::decode)].steps == 0);
  CHECK(counted.steps == 2 && counted.tokens == 2 * step.header.tokens && counted.rows == rows);
  uint64_t calls = 0, inside = counted.states + counted.results;
  for (const Tally::Instruction& i : counted.instructions) calls += i.calls, inside += i.nanoseconds;
  CHECK(calls == launches + step.value<uint32_t>(4) && step.value<uint32_t>(4) < launches);
  CHECK(inside <= counted.nanoseconds);
  model->set_tally(true);
  CHECK(model->tally()->phases[0].steps == 0 && model->tally()->phases[1].steps == 0);
  model->set_tally(false);
  CHECK(!model->tally());
}

void resets_slots() {
  Package package("menagerie.bin");
  const auto model = package.open(fake_table());
  StepBytes step;
  step.header.rows = 0;
  for (uint32_t s = 0; s < package.view.states.size(); ++s)
    for (uint32_t slot = 0; slot < 5; ++slot) std::ranges::fill(model->unit(s, slot), std::byte{0x55});
  step.header.resets = 1;
  CHECK(!model->step(step.bytes, step.result));
  for (uint32_t s = 0; s < package.view.states.size(); ++s) {
    if (package.view.states[s].kind != StateKind::fixed) continue;
    CHECK(filled(model->unit(s, 3), 0) && filled(model->unit(s, 2), 0x55));
    CHECK(filled(model->unit(s, 1), 2) && filled(model->unit(s, 4), 5));
  }
}

// Wherever a step fails, in the middle of a kernel included, slots are as before it: of its sequences, and those it resets.
void takes_back_a_failed_step() {
  Package package("menagerie.bin");
  const size_t instructions = package.view.instructions.size();
  StepBytes step;
  step.header.resets = 1;
  const auto fill = [&](Model& model) {
    for (uint32_t s = 0; s < package.view.states.size(); ++s)
      for (uint32_t u = 0; u < 5; ++u) std::ranges::fill(model.unit(s, u), std::byte(0x50 + u));
  };
  const auto check = [&](Model& model, uint32_t slots) {
    for (uint32_t s = 0; s < package.view.states.size(); ++s)
      for (uint32_t u = 0; u < slots && package.view.states[s].kind == StateKind::fixed; ++u)
        CHECK(filled(model.unit(s, u), int(0x50 + u)));
  };
  const auto model = package.open(fake_table());
  for (size_t i = 0; i <= instructions; ++i) {
    fill(*model);
    model->fail_after(uint32_t(i));
    CHECK(model->step(step.bytes, step.result).code == "STEP_FAILED");
    check(*model, 5);
    CHECK(!model->step(step.bytes, step.result));  // one failure each
  }
  check(*model, 1);
  KernelTable table = fake_table();
  table.kernels[op::ssm_scan::id] = [](const Context& context, const Call& call) {
    mark_states(context.step, call);
    throw std::runtime_error("half done");
  };
  const auto broken = package.open(table);
  fill(*broken);
  CHECK(broken->step(step.bytes, step.result).code == "STEP_FAILED");
  check(*broken, 5);
}

std::string where(const Fault& fault) { return fault ? std::get<std::string>(fault.details[0].second) : ""; }

// A step takes its ids from the rows of the one before it; after one that failed there is nothing to take.
void follows_the_step_before() {
  Package package("decoder.bin");
  KernelTable table = fake_table();
  static int32_t seen;
  table.kernels[op::embed::id] = [](const Context& context, const Call& call) {
    seen = context.step.token_ids[4];
    fake(context, call);
  };
  table.kernels[op::sample::id] = [](const Context& context, const Call& call) {
    fake_sample(context, call);
    for (uint32_t r = 0; r < call.outputs[0].rows; ++r) *call.outputs[0].row<int32_t>(r) = int32_t(30 + r);
  };
  const auto model = package.open(table);
  StepBytes first, second;
  second.header.follows = 1;
  reinterpret_cast<int32_t*>(second.bytes.data() + second.header.token_ids)[4] = -2;
  CHECK(where(model->step(second.bytes, second.result)) == "step.follows");
  for (const uint32_t instructions : {0u, 3u}) {
    CHECK(!model->step(first.bytes, first.result) && first.value<int32_t>(kResultRowsOffset + kRowResultBytes) == 31);
    CHECK(!model->step(second.bytes, second.result) && seen == 31);
    CHECK(!model->step(second.bytes, second.result));  // which one follows too
    model->fail_after(instructions);
    CHECK(model->step(first.bytes, first.result).code == "STEP_FAILED");
    for (int i = 0; i < 2; ++i) CHECK(where(model->step(second.bytes, second.result)) == "step.follows");
  }
  first.sampling(1).flags = kSampleFlagLogits;
  CHECK(!model->step(first.bytes, first.result));
  CHECK(where(model->step(second.bytes, second.result)) == "step.token_ids[4]");
  first.header.rows = 1;
  CHECK(!model->step(first.bytes, first.result));
  CHECK(where(model->step(second.bytes, second.result)) == "step.token_ids[4]");
}

void tells_how_long_it_was_idle() {
  Package package("decoder.bin");
  const auto model = package.open(fake_table());
  StepBytes step;
  CHECK(!model->step(step.bytes, step.result) && step.value<uint32_t>(16) == 0);
  std::this_thread::sleep_for(std::chrono::milliseconds(3));
  CHECK(!model->step(step.bytes, step.result) && step.value<uint32_t>(16) >= 3000);
}

// Whether it names anything of the failed step or not, what follows it leaves state alone.
void leaves_state_behind_a_failed_step() {
  Package package("menagerie.bin");
  const auto model = package.open(fake_table());
  StepBytes step;
  step.header.resets = 1;
  step.header.copies = 2;
  CHECK(!model->step(step.bytes, step.result));
  model->fail_after(1);
  CHECK(model->step(step.bytes, step.result).code == "STEP_FAILED");
  for (uint32_t s = 0; s < package.view.states.size(); ++s)
    for (uint32_t unit = 0; unit < 5; ++unit) std::ranges::fill(model->unit(s, unit), std::byte{0x55});
  step.header.follows = 1;
  CHECK(where(model->step(step.bytes, step.result)) == "step.follows");
  for (uint32_t s = 0; s < package.view.states.size(); ++s)
    for (uint32_t unit = 0; unit < 5; ++unit) CHECK(filled(model->unit(s, unit), 0x55));
  step.header.follows = 0;
  CHECK(!model->step(step.bytes, step.result));
}

void reports_what_a_kernel_throws() {
  Package package("decoder.bin");
  KernelTable table = fake_table();
  table.kernels[op::glu::id] = [](const Context&, const Call&) { throw std::runtime_error("broken"); };
  StepBytes step;
  Fault fault = package.open(table)->step(step.bytes, step.result);
  CHECK(fault.code == "STEP_FAILED");
  CHECK(std::get<std::string>(fault.details[0].second) == "layers.0.glu");
  CHECK(std::get<std::string>(fault.details[1].second) == "broken");
  table.kernels[op::glu::id] = [](const Context& c, const Call&) { c.scratch.take<char>(size_t{1} << 50); };
  const auto model = package.open(table);
  fault = model->step(step.bytes, step.result);
  CHECK(fault.code == "OUT_OF_MEMORY" && std::get<double>(fault.details[1].second) == double(size_t{1} << 50));
  step.header.version = 9;
  CHECK(model->step(step.bytes, step.result).code == "STEP_FAILED");
  step.header.version = kStepVersion;
  const auto sound = package.open(fake_table());
  CHECK(!sound->step(step.bytes, step.result));  // the pool is free again
}

// Each kernel leaves its operands in one way, and the sentinels say which.
void sees_what_a_kernel_overwrites() {
  using Write = void (*)(const Context&, const Call&);
  const struct { const char* name; uint16_t opcode; Write write; } cases[] = {
      {"", op::glu::id, [](const Context&, const Call&) {}},
      {"register layers.0.glu.out: what lies past its 5 rows was written", op::glu::id,
       [](const Context&, const Call& call) { *call.outputs[0].row<float>(call.outputs[0].rows) = 1; }},
      {"register layers.0.glu.out: what lies before its first row was written", op::glu::id,
       [](const Context&, const Call& call) { call.outputs[0].row<float>(0)[-1] = 1; }},
      {"state layers.0.kv: what lies before its first unit was written", op::attention::id,
       [](const Context&, const Call& call) { call.states[0].base[-1] = std::byte{1}; }},
      {"state layers.0.kv: what lies past its last unit was written", op::attention::id,
       [](const Context&, const Call& call) { call.states[0].base[7 * call.states[0].size] = std::byte{1}; }},
      {"state layers.0.kv: unit 4, which holds no token of the step, was written", op::attention::id,
       [](const Context&, const Call& call) { call.states[0].base[4 * call.states[0].size] ^= std::byte{1}; }},
      {"", op::attention::id,  // the dump
       [](const Context&, const Call& call) { call.states[0].base[0] = std::byte{1}; }},
  };
  static Write write;
  for (const auto& each : cases) {
    Package package("decoder.bin");
    package.options.guard = true;
    KernelTable table = fake_table();
    write = each.write;
    table.kernels[each.opcode] = [](const Context& context, const Call& call) { fake(context, call), write(context, call); };
    const auto model = package.open(table);
    StepBytes step;
    for (int i = 0; i < 2; ++i) {
      CHECK(!model->step(step.bytes, step.result));
      CHECK(model->sentinels().empty() == !*each.name);
      if (*each.name) CHECK(model->sentinels()[0] == each.name);
    }
  }
}

// What nothing has written is NaN: registers, scratch, and units of states.
void hands_out_nothing_but_nan() {
  Package package("decoder.bin");
  package.options.guard = true;
  KernelTable table = fake_table();
  table.kernels[op::embed::id] = [](const Context& context, const Call& call) {
    for (uint32_t c = 0; c < call.outputs[0].width; ++c) CHECK(std::isnan(call.outputs[0].row<float>(0)[c]));
    const float* scratch = context.scratch.take<float>(100);
    for (int i = 0; i < 100; ++i) CHECK(std::isnan(scratch[i]));
    fake(context, call);
  };
  const auto model = package.open(table);
  StepBytes step;
  for (int i = 0; i < 2; ++i) CHECK(!model->step(step.bytes, step.result));
  const auto unit = model->unit(0, 4);
  for (size_t i = 0; i + 4 <= unit.size(); i += 4) CHECK(std::isnan(*reinterpret_cast<const float*>(unit.data() + i)));
}

void refuses_what_does_not_fit() {
  using Change = void (*)(ModelOptions&, WeightFile&, std::vector<WeightRange>&);
  const struct { const char* code; Change change; } cases[] = {
      {"PACKAGE_INVALID", [](auto& options, auto&, auto&) { options.weights.clear(); }},
      {"FILE_MISSING", [](auto&, auto& file, auto&) { file.path += "x"; }},
      {"FILE_UNREADABLE", [](auto&, auto& file, auto&) { file.path = "/tmp"; }},
      {"FILE_TRUNCATED", [](auto&, auto& file, auto&) { file.bytes += 1; }},
      {"PACKAGE_INVALID", [](auto&, auto& file, auto&) { file.bytes -= 1; }},
      {"PACKAGE_INVALID", [](auto&, auto&, auto& tensors) { tensors.pop_back(); }},
      {"PACKAGE_INVALID", [](auto&, auto&, auto& tensors) { tensors[1].tensor = 0; }},
      {"PACKAGE_INVALID", [](auto&, auto&, auto& tensors) { tensors[1].tensor = 1000; }},
      {"PACKAGE_INVALID", [](auto&, auto&, auto& tensors) { tensors[0].bytes += 64; }},
      {"PACKAGE_INVALID", [](auto&, auto&, auto& tensors) { tensors[0].offset = 32; }},
      {"FILE_TRUNCATED", [](auto&, auto& file, auto& tensors) { tensors[0].offset = file.bytes; }},
      {"FILE_TRUNCATED", [](auto&, auto&, auto& tensors) { tensors[0].offset = UINT64_MAX - 63; }},
      {"OUT_OF_MEMORY", [](auto& options, auto&, auto&) { options.blocks = INT32_MAX; }},
      {"OUT_OF_MEMORY", [](auto& options, auto&, auto&) { options.limits.tokens = options.limits.rows = INT32_MAX; }},
  };
  for (const auto& [code, change] : cases) {
    Package package("decoder.bin");
    WeightFile& file = package.options.weights[0];
    change(package.options, file, file.tensors);
    CHECK(package.refusal() == code);
  }
  Package broken("decoder.bin");
  broken.plan[4] = std::byte{'X'};
  CHECK(broken.refusal() == "PLAN_INVALID");
  Package package("decoder.bin");
  KernelTable table = fake_table();
  table.kernels[op::attention::id] = nullptr;
  CHECK(package.refusal(table) == "LINK_GAPS");
}

}  // namespace

int main() {
  runs_a_step();
  traces_what_is_written();
  copies_what_rows_want();
  skips_what_has_no_rows();
  links_neighbours();
  tallies_when_asked();
  resets_slots();
  takes_back_a_failed_step();
  follows_the_step_before();
  tells_how_long_it_was_idle();
  leaves_state_behind_a_failed_step();
  reports_what_a_kernel_throws();
  sees_what_a_kernel_overwrites();
  hands_out_nothing_but_nan();
  refuses_what_does_not_fit();
}

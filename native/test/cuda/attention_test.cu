// Attention on CUDA against naive f64 code, and bit for bit against itself: however prompts are cut into chunks,
// whichever sequences share a step, and with lanes of padding, at times so many that kernels for many sequences run.
#include <csignal>

#include "../attention_cases.h"
#include "device.h"

namespace ingot::cuda {
cudaError_t attention(const Context&, const Call&);
size_t attention_workspace(const Device&, const Call&);
Choices attention_choices(const Device&, const Shape&, const Call&);
}  // namespace ingot::cuda

using namespace ingot;
using namespace ingot::test;

namespace {

char label[200];

// Runs a step with `lanes` more sequences of padding behind its own: a token at position 0, in the dump block.
struct Runner {
  Arena arena{size_t(256) << 20};
  Random random{5};

  void operator()(const Step& step, const Call& call, Pages& pages) {
    arena.clear();
    const uint32_t many = uint32_t(device().processors) * (random.below(8) ? 1 : 9);  // 9: not all are resident
    const uint32_t lanes = random.below(3) ? uint32_t(random.below(4)) : many;
    const uint32_t tokens = step.tokens + lanes, sequences = step.sequences + lanes;
    const auto pad = [&](const int32_t* from, size_t count, size_t more, int32_t value, int32_t growth) {
      std::vector<int32_t> padded(from, from + count);
      for (size_t i = 0; i < more; ++i) padded.push_back(value + int32_t(i) * growth);
      return arena.copy(padded.data(), padded.size());
    };
    Step on = step;
    std::vector<int32_t> lengths;
    uint32_t most = 1;
    bool decode = true;
    for (uint32_t s = 0; s < step.sequences; ++s) {
      lengths.push_back(step.positions[step.sequence_start[s + 1] - 1] + 1);
      decode &= step.sequence_start[s + 1] - step.sequence_start[s] == 1;
      most = std::max(most, uint32_t(lengths.back()));
    }
    on.tokens = tokens;
    on.sequences = sequences;
    on.positions = pad(step.positions, step.tokens, lanes, 0, 0);
    on.token_sequence = pad(step.token_sequence, step.tokens, lanes, int32_t(step.sequences), 1);
    on.sequence_start = pad(step.sequence_start, step.sequences + 1, lanes, int32_t(step.tokens) + 1, 1);
    on.sequence_length = pad(lengths.data(), lengths.size(), lanes, 1, 0);
    on.block_table = pad(step.block_table, step.sequences * step.blocks_per_sequence,
                         lanes * step.blocks_per_sequence, 0, 0);
    Call there = call;
    const auto longer = [&](const Matrix& m) {
      Matrix to = m;
      to.rows = tokens;
      to.data = arena.take(tokens * m.stride);
      CUDA_CHECK(cudaMemcpy(to.data, m.data, m.rows * m.stride, cudaMemcpyHostToDevice));
      return to;
    };
    for (size_t i = 0; i < 3; ++i) there.inputs[i] = longer(call.inputs[i]);
    there.outputs[0] = longer(call.outputs[0]);
    for (Weight& w : there.weights) w = arena.copy(w);
    std::byte* state = const_cast<std::byte*>(arena.copy(pages.bytes.data(), pages.bytes.size()));
    if (call.states[0]) there.states[0].base = state;
    const cuda::Shape shape{std::max(most, uint32_t(random.below(2)) * 4096), decode, true};
    uint32_t launches = 0;
    const cuda::Workspace room = workspace(cuda::attention_workspace(device(), there), bool(there.states[0]));
    const cuda::Context context{on, shape, device(), room, nullptr, &launches,
                                any_choice(cuda::attention_choices(device(), shape, there))};
    CUDA_CHECK(cuda::attention(context, there));
    CUDA_CHECK(cudaDeviceSynchronize());
    CHECK(launches <= 2);
    there.outputs[0].rows = call.outputs[0].rows;
    copy_back(there.outputs[0], call.outputs[0]);
    if (random.below(8) == 0) narrow(context, there, call.outputs[0]);
    CUDA_CHECK(cudaMemcpy(pages.bytes.data(), state, pages.bytes.size(), cudaMemcpyDeviceToHost));
  }

  // One of those that can serve, or that of the rules.
  cuda::Choice any_choice(const cuda::Choices& choices) {
    const auto choice = random.pick({cuda::Choice::rules, cuda::Choice::lean, cuda::Choice::wide, cuda::Choice::many});
    return choices.has(choice) ? choice : cuda::Choice::rules;
  }

  // The same once more, into a register of 16 bits: what is rounded is the same.
  void narrow(const cuda::Context& context, const Call& call, const Matrix& expected) {
    for (const DType dtype : {DType::bf16, DType::f16}) {
      Call there = call;
      Matrix& out = there.outputs[0];
      out.dtype = dtype;
      out.stride = (out.width * 2 + 15) / 4 * 4;
      out.rows = context.step.tokens;
      out.data = arena.take(out.rows * out.stride);
      CUDA_CHECK(cuda::attention(context, there));
      CUDA_CHECK(cudaDeviceSynchronize());
      std::vector<uint16_t> found(out.rows * out.stride / 2);
      CUDA_CHECK(cudaMemcpy(found.data(), out.data, found.size() * 2, cudaMemcpyDeviceToHost));
      for (size_t r = 0; r < expected.rows; ++r)
        for (size_t i = 0; i < out.width; ++i) {
          const float x = expected.row<float>(r)[i];
          CHECK(found[r * out.stride / 2 + i] == (dtype == DType::bf16 ? to_bf16(x) : to_f16(x)));
        }
    }
  }
};

Runner& runner() {
  static Runner one;
  return one;
}

void test_case(const Case& c, Random& random) {
  const auto& p = c.params;
  std::snprintf(label, sizeof label, "dtype %d heads %u/%u dim %u causal %u window %u softcap %g rope %u/%u norm %d\n",
                int(c.dtype), p.heads, p.kv_heads, p.head_dim, p.causal, p.window, double(p.softcap), p.rope_dim,
                p.rope_style, int(c.norm));
  Inputs in(c, random);
  std::vector<float> expected;
  size_t schedule = 0;
  for (const auto& steps : schedules(c, random)) {
    const Register out = run(c, in, steps, [](const Step& step, const Call& call, Pages& pages) { runner()(step, call, pages); });
    if (expected.empty()) {
      compare(c, in, out, c.dtype == DType::f16 ? 3 : 1);
      expected = out.data;
    }
    const bool same = std::memcmp(expected.data(), out.data.data(), expected.size() * 4) == 0;
    if (!same) std::fprintf(stderr, "schedule %zu differs\n", schedule);
    CHECK(same);
    ++schedule;
  }
}

}  // namespace

int main() {
  std::signal(SIGABRT, [](int) { std::fputs(label, stderr); });
  Random random(7);
  constexpr DType dtypes[] = {DType::f32, DType::f16, DType::bf16, DType::i8};
  constexpr uint32_t shapes[][3] = {{1, 1, 16},  {4, 4, 8},    {8, 2, 32},  {6, 2, 20},  {7, 1, 33},  {17, 1, 64},
                                    {2, 1, 128}, {12, 4, 80},  {4, 2, 256}, {1, 1, 1},   {2, 1, 512}, {5, 5, 300},
                                    {32, 2, 64}, {14, 2, 128}, {9, 1, 96},  {20, 1, 128}};
  size_t cases = 0;
  for (const auto& [heads, kv_heads, dim] : shapes) {
    for (uint32_t variant = 0; variant < 8; ++variant, ++cases) {
      Case c{{}, dtypes[variant % 4], false, false, {}};
      c.params.heads = heads;
      c.params.kv_heads = kv_heads;
      c.params.head_dim = dim;
      c.params.scale = 1 / std::sqrt(float(dim));
      c.params.causal = variant != 5;
      c.params.window = variant == 1 ? 1 : variant == 3 ? 37 : variant == 4 ? 64 : 0;
      c.params.softcap = variant == 2 ? 2.0f : 0.0f;
      c.rope = variant != 0 && dim > 1;
      c.params.rope_dim = c.rope ? (variant == 4 && dim >= 4 ? dim / 4 * 2 : dim / 2 * 2) : 0;
      c.params.rope_style = variant == 2;
      c.params.attention_factor = variant == 3 ? 1.1f : 1.0f;
      c.norm = variant % 2;
      c.params.norm_eps = 1e-6f;
      c.params.norm_offset = variant == 3 ? 1.0f : 0.0f;
      c.lengths = {1 + random.below(31), 32, 33 + random.below(50), 1};
      test_case(c, random);
    }
  }
  // Around the ends of pages, tiles, and splits of 128 positions; windows that begin in the midst of one.
  constexpr uint32_t long_shapes[][3] = {{2, 2, 32}, {3, 1, 64}, {8, 2, 64}, {8, 1, 96}, {4, 1, 128}, {2, 2, 16}};
  uint32_t variant = 0;
  for (const auto& [heads, kv_heads, dim] : long_shapes) {
    for (DType dtype : {DType::bf16, DType::f16, DType::i8, DType::bf16}) {
      Case c{{}, dtype, true, false, {}};
      c.params.heads = heads;
      c.params.kv_heads = kv_heads;
      c.params.head_dim = dim;
      c.params.scale = 2 / std::sqrt(float(dim));
      c.params.causal = 1;
      c.params.window = variant % 3 == 1 ? 300 : variant % 3 == 2 ? 40 : 0;
      c.params.softcap = variant % 5 == 4 ? 3.0f : 0.0f;
      c.params.rope_dim = dim;
      c.params.attention_factor = 1;
      constexpr size_t ends[] = {127, 128, 129, 256, 257, 513, 800};
      c.lengths = {ends[variant % 7], 31, 32, 33, ends[(variant + 3) % 7]};
      ++variant;
      ++cases;
      test_case(c, random);
    }
  }
  std::printf("attention: %zu cases agree\n", cases);
}

// Attention against naive f64 code, and bit for bit against itself: on every instruction set, with any number of
// threads, however prompts are cut into chunks and whichever sequences share a step.
#include "attention_cases.h"

using namespace ingot;
using namespace ingot::test;

namespace {

void test_case(const Case& c, Random& random) {
  Inputs in(c, random);
  std::vector<float> expected;
  unsigned runs = 0;
  for (const auto& steps : schedules(c, random)) {
    for (const cpu::InstructionSet& set : tested_sets()) {
      if (set.table) {
        const unsigned threads = 1 + runs++ % 4;
        const auto execute = [&](const Step& step, const Call& call, const Pages&) {
          run_on(*set.table, threads, op::attention::id, step, call);
        };
        const Register out = run(c, in, steps, execute);
        if (expected.empty()) {
          compare(c, in, out);
          expected = out.data;
        }
        const bool same = std::memcmp(expected.data(), out.data.data(), expected.size() * 4) == 0;
        if (!same) std::fprintf(stderr, "%s with %u threads differs\n", set.name, threads);
        CHECK(same);
      }
    }
  }
}

}  // namespace

int main() {
  Random random(7);
  constexpr DType dtypes[] = {DType::f32, DType::f16, DType::bf16, DType::i8};
  constexpr uint32_t shapes[][3] = {{1, 1, 16}, {4, 4, 8}, {8, 2, 32}, {6, 2, 20}, {7, 1, 33}, {4, 1, 64}, {2, 1, 128}};
  for (const auto& [heads, kv_heads, dim] : shapes) {
    for (uint32_t variant = 0; variant < 8; ++variant) {
      Case c{{}, dtypes[variant % 4], false, false, {}};
      c.params.heads = heads;
      c.params.kv_heads = kv_heads;
      c.params.head_dim = dim;
      c.params.scale = 1 / std::sqrt(float(dim));
      c.params.causal = variant != 5;
      c.params.window = variant == 1 ? 1 : variant == 3 ? 37 : variant == 4 ? 64 : 0;
      c.params.softcap = variant == 2 ? 2.0f : 0.0f;
      c.rope = variant != 0;
      c.params.rope_dim = c.rope ? (variant == 4 ? dim / 4 * 2 : dim / 2 * 2) : 0;
      c.params.rope_style = variant == 2;
      c.params.attention_factor = variant == 3 ? 1.1f : 1.0f;
      c.norm = variant % 2;
      c.params.norm_eps = 1e-6f;
      c.params.norm_offset = variant == 3 ? 1.0f : 0.0f;
      c.lengths = {1 + random.below(31), 32, 33 + random.below(50), 1};
      test_case(c, random);
    }
  }
  // Around the ends of pages, and of splits of 256 positions; windows that begin in the midst of one.
  constexpr uint32_t long_shapes[][3] = {{2, 2, 32}, {3, 1, 64}, {4, 1, 80}, {8, 1, 96}, {2, 1, 128}, {2, 2, 16}};
  uint32_t variant = 0;
  for (const auto& [heads, kv_heads, dim] : long_shapes) {
    const DType plain = variant % 2 ? DType::f16 : DType::f32;
    for (DType dtype : {DType::bf16, plain, DType::i8}) {
      if (dtype == plain && dim > 64) continue;  // without the instruction, a fused sum is slow
      Case c{{}, dtype, true, false, {}};
      c.params.heads = heads;
      c.params.kv_heads = kv_heads;
      c.params.head_dim = dim;
      c.params.scale = 2 / std::sqrt(float(dim));
      c.params.causal = variant % 7 != 6;
      c.params.window = variant % 3 == 1 ? 300 : variant % 3 == 2 ? 40 : 0;
      c.params.softcap = variant % 5 == 4 ? 3.0f : 0.0f;
      c.params.rope_dim = dim;
      c.params.attention_factor = 1;
      constexpr size_t ends[] = {255, 256, 257, 511, 512, 513, 800};
      c.lengths = {ends[variant % 7], 31, 32, 33, ends[(variant + 3) % 7]};
      ++variant;
      test_case(c, random);
    }
  }
}

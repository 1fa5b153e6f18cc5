// Attention against naive f64 code, and bit for bit against itself: on every instruction set, with any number of
// threads, however prompts are cut into chunks and whichever sequences share a step. `attention_test [short|even|odd]`: the
// short cases, or the long ones of even or odd number; without a word, all.
#include <string_view>

#include "attention_cases.h"

using namespace ingot;
using namespace ingot::test;

namespace {

// Whether a set that is not the best computes schedule `index` of `count` of a long case. Portable code is slow: it
// computes one, in turn. What VNNI adds multiplies integers, which attention does not; the short cases run its tables.
bool computes_long(std::string_view set, size_t index, size_t count, size_t turn) {
  return set == "portable" ? index == turn % count : set != "avx2_vnni" && set != "avx512_vnni";
}

// With `long_turn`, the number of a long case, not every set computes all of it.
void test_case(const Case& c, Random& random, const size_t* long_turn = nullptr) {
  Inputs in(c, random);
  std::vector<float> expected;
  unsigned runs = 0;
  const auto all = schedules(c, random);
  for (size_t i = 0; i < all.size(); ++i) {
    bool best = true;
    for (const cpu::InstructionSet& set : tested_sets()) {
      if (!set.table) continue;
      const bool chosen = best || !long_turn || computes_long(set.name, i, all.size(), *long_turn);
      best = false;
      if (!chosen) continue;
      const unsigned threads = 1 + runs++ % 4;
      const auto execute = [&](const Step& step, const Call& call, const Pages&) {
        run_on(*set.table, threads, op::attention::id, step, call);
      };
      const Register out = run(c, in, all[i], execute);
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

void test_short() {
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
}

// Around the ends of pages, and of splits of 256 positions; windows that begin in the midst of one: the cases whose number
// leaves `remainder` when halved.
void test_long(size_t remainder) {
  Random random(8 + remainder);
  constexpr uint32_t long_shapes[][3] = {{2, 2, 32}, {3, 1, 64}, {4, 1, 80}, {8, 1, 96}, {2, 1, 128}, {2, 2, 16}};
  size_t variant = 0;
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
      if (variant % 2 == remainder) test_case(c, random, &variant);
      ++variant;
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view part = argc > 1 ? argv[1] : "";
  CHECK(part.empty() || part == "short" || part == "even" || part == "odd");
  if (part.empty() || part == "short") test_short();
  if (part.empty() || part == "even") test_long(0);
  if (part.empty() || part == "odd") test_long(1);
}

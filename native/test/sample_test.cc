// Sampling against naive f64 code.
#include "sample_cases.h"

using namespace ingot;
using namespace ingot::test;

namespace {

// The known answers published with the generator (Random123, kat_vectors).
void test_philox() {
  const Philox zero = philox({{0, 0, 0, 0}}, 0, 0), pi = philox({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}},
                                                               0xa4093822, 0x299f31d0);
  const uint32_t expected_zero[] = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
  const uint32_t expected_pi[] = {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1};
  CHECK(std::memcmp(zero.x, expected_zero, 16) == 0);
  CHECK(std::memcmp(pi.x, expected_pi, 16) == 0);
}

void everywhere(const Step& step, const Call& call, std::vector<Register*> outputs, size_t, size_t) {
  run_everywhere(op::sample::id, step, call, std::move(outputs));
}

// Draws follow the distribution: a chi-squared test at odds of about one in a million.
void test_distribution() {
  constexpr size_t vocab = 8, draws = 20000;
  std::vector<SampleCase> cases(500);
  std::vector<double> counts(vocab), probabilities(vocab);
  double total = 0;
  for (size_t i = 0; i < vocab; ++i) total += probabilities[i] = std::exp(0.4 * double(i));
  for (size_t begin = 0; begin < draws; begin += cases.size()) {
    for (size_t i = 0; i < cases.size(); ++i) {
      SampleCase& c = cases[i];
      c.params = defaults(uint32_t(begin + i));
      c.params.temperature = 1;
      c.logits.clear();
      for (size_t j = 0; j < vocab; ++j) c.logits.push_back(0.4f * float(j));
      ++counts[size_t(choose(c))];
    }
    run(cases, vocab, everywhere);
  }
  double statistic = 0;
  for (size_t i = 0; i < vocab; ++i) {
    const double expected = probabilities[i] / total * draws;
    statistic += (counts[i] - expected) * (counts[i] - expected) / expected;
  }
  CHECK(statistic < 41);
}

}  // namespace

int main() {
  test_philox();
  test_random(everywhere);
  test_degenerate(everywhere);
  test_distribution();
}

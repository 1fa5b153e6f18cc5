// Sampling on CUDA against naive f64 code, and bit for bit against itself in batches of other rows.
#include "../sample_cases.h"
#include "device.h"

namespace ingot::cuda {
cudaError_t sample(const Context&, const Call&);
size_t sample_workspace(const Device&, const Call&);
}  // namespace ingot::cuda

using namespace ingot;
using namespace ingot::test;

namespace {

void once(const Step& step, const Call& call, const std::vector<Register*>& outputs, size_t history, size_t biases) {
  static Arena arena(size_t(256) << 20);
  arena.clear();
  Step on = step;
  on.sampling = arena.copy(step.sampling, step.rows);
  on.history_ids = arena.copy(step.history_ids, history);
  on.bias_entries = arena.copy(step.bias_entries, biases);
  Call there = call;
  there.inputs[0] = arena.copy(call.inputs[0]);
  for (size_t i = 0; i < 3; ++i) there.outputs[i] = arena.copy(outputs[i]->matrix());
  const cuda::Shape shape{1, true, true};
  uint32_t launches = 0;
  const cuda::Context context{on, shape, device(), workspace(cuda::sample_workspace(device(), there)), nullptr,
                              &launches};
  CUDA_CHECK(cuda::sample(context, there));
  CUDA_CHECK(cudaDeviceSynchronize());
  CHECK(launches == 1);
  for (size_t i = 0; i < 3; ++i) copy_back(there.outputs[i], outputs[i]->matrix());
  copy_back(there.inputs[0], call.inputs[0]);
}

// The whole step, then its last row alone: the same bits.
void on_device(const Step& step, const Call& call, const std::vector<Register*>& outputs, size_t history,
               size_t biases) {
  for (Register* r : outputs) r->clear();
  once(step, call, outputs, history, biases);
  Step last = step;
  last.rows = 1;
  last.sampling += step.rows - 1;
  Call alone = call;
  alone.inputs[0].data += (step.rows - 1) * call.inputs[0].stride;
  alone.inputs[0].rows = 1;
  std::vector<Register> found;
  for (Register* r : outputs) found.emplace_back(1, r->width, r->dtype);
  once(last, alone, {&found[0], &found[1], &found[2]}, history, biases);
  for (size_t i = 0; i < 3; ++i) {
    CHECK(outputs[i]->guarded() && found[i].guarded());
    for (size_t c = 0; c < found[i].width; ++c) {
      const uint32_t one = bits_of(found[i].row(0)[c]), all = bits_of(outputs[i]->row(step.rows - 1)[c]);
      if (one != all) std::fprintf(stderr, "output %zu, column %zu: alone %08x, in a batch %08x\n", i, c, one, all);
      CHECK(one == all);
    }
  }
}

// A vocabulary of many chunks: every combination of options, long histories, flat and peaked logits.
void test_large() {
  Random random(3);
  constexpr size_t vocab = 33000;
  std::vector<SampleCase> cases;
  for (uint32_t i = 0; i < 48; ++i) {
    SampleCase c;
    c.params = defaults(i);
    c.params.temperature = i % 8 ? float(0.3 + random.uniform()) : 0;
    c.params.top_k = i & 1 ? (i & 16 ? 5000 : 50) : 0;
    c.params.top_p = i & 2 ? 0.9f : 1;
    c.params.min_p = i & 4 ? 0.01f : 0;
    c.params.top_logprobs = i % 3 ? 20 : 0;
    const double spread = i & 8 ? 3 : 0.1;
    for (size_t j = 0; j < vocab; ++j) c.logits.push_back(float(spread * random.normal()));
    if (i % 5 == 0) {
      for (size_t j = 0; j < 3000; ++j) c.history.push_back(int32_t(random.below(vocab / 8)));
      c.params.history_prompt = 1000;
      c.params.repetition_penalty = 1.3f;
      c.params.presence_penalty = 0.2f;
      c.params.frequency_penalty = 0.1f;
    }
    if (i % 7 == 0)
      for (size_t j = 0; j < 300; ++j) c.biases.push_back({uint32_t(random.below(vocab)), float(random.normal())});
    cases.push_back(c);
  }
  run(cases, vocab, on_device);
}

}  // namespace

int main() {
  test_random(on_device);
  test_degenerate(on_device);
  test_large();
  std::puts("sample: all cases agree");
}

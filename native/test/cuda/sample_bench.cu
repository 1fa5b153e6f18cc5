// Times of sampling by what rows ask for.
#include "bench.h"

namespace ingot::cuda {
cudaError_t sample(const Context&, const Call&);
size_t sample_workspace(const Device&, const Call&);
}  // namespace ingot::cuda

using namespace ingot;
using namespace ingot::test;

namespace {

void time_case(const char* name, uint32_t rows, SampleParams params, double spread) {
  static Arena arena(size_t(1) << 30);
  arena.clear();
  constexpr uint32_t vocab = 128256;
  const op::sample::Params p{12, 1, 0, vocab};
  Step step{};
  step.rows = rows;
  std::vector<SampleParams> sampling(rows, params);
  for (uint32_t r = 0; r < rows; ++r) sampling[r].seed_low = r;
  std::vector<int32_t> history;
  for (uint32_t i = 0; i < params.history_count; ++i) history.push_back(int32_t(i * 97 % vocab));
  step.sampling = arena.copy(sampling.data(), rows);
  step.history_ids = arena.copy(history.data(), history.size());
  Call call{};
  call.inputs[0] = {reinterpret_cast<std::byte*>(random_numbers<float>(arena, size_t(rows) * vocab,
                    [&](float x) { return float(spread) * x; })), vocab * 4, rows, vocab, DType::f32};
  call.outputs[0] = {arena.take(rows * 4), 4, rows, 1, DType::i32};
  call.outputs[1] = {arena.take(rows * 84), 84, rows, 21, DType::f32};
  call.outputs[2] = {arena.take(rows * 80), 80, rows, 20, DType::i32};
  call.params = &p;
  const cuda::Shape shape{1024, true, true};
  uint32_t launches = 0;
  const cuda::Workspace memory = workspace(cuda::sample_workspace(device(), call));
  const double us = time_launches(8, [&](size_t, cudaStream_t stream) {
    return cuda::sample({step, shape, device(), memory, stream, &launches},
                        call);
  });
  std::printf("%-34s %3u rows %8.1f us\n", name, rows, us);
}

}  // namespace

int main() {
  SampleParams p{};
  p.flags = kSampleFlagSample;
  p.top_p = p.repetition_penalty = 1;
  for (uint32_t rows : {1, 8, 32, 128}) {
    SampleParams greedy = p, all = p, top_k = p, top_p = p, penalty = p;
    time_case("greedy", rows, greedy, 3);
    greedy.top_logprobs = 5;
    time_case("greedy, 5 logprobs", rows, greedy, 3);
    all.temperature = 0.8f;
    time_case("temperature", rows, all, 3);
    top_k = all;
    top_k.top_k = 40;
    top_k.top_p = 0.95f;
    time_case("top_k 40, top_p 0.95", rows, top_k, 3);
    top_p = all;
    top_p.top_p = 0.9f;
    time_case("top_p 0.9, peaked", rows, top_p, 8);
    if (rows == 1) time_case("top_p 0.9, flat", rows, top_p, 0.1);
    penalty = top_k;
    penalty.repetition_penalty = 1.1f;
    penalty.history_count = 600;
    time_case("top_k 40, top_p 0.95, penalties", rows, penalty, 3);
  }
}

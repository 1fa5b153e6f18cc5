// Times of attention over the layers of a step, as shares of what the device reads and multiplies.
#include "bench.h"

namespace ingot::cuda {
cudaError_t attention(const Context&, const Call&);
size_t attention_workspace(const Device&, const Call&);
}  // namespace ingot::cuda

using namespace ingot;
using namespace ingot::test;

namespace {

constexpr double kReadGigabytes = 4284, kTeraflops = 783;  // measured ceilings of an H200

void time_case(uint32_t heads, uint32_t kv_heads, uint32_t dim, uint32_t sequences, uint32_t known, uint32_t fresh,
               DType dtype = DType::bf16) {
  static Arena arena(size_t(24) << 30);
  arena.clear();
  op::attention::Params p{};
  p.heads = heads;
  p.kv_heads = kv_heads;
  p.head_dim = p.rope_dim = dim;
  p.scale = 1 / std::sqrt(float(dim));
  p.causal = 1;
  p.attention_factor = 1;
  const uint32_t tokens = sequences * fresh, length = known + fresh, blocks = (length + 31) / 32;
  const size_t unit = size_t(2) * kv_heads * 32 * (byte_size(dtype, dim) + (dtype == DType::i8 ? 4 : 0));
  const size_t state_bytes = unit * (size_t(sequences) * blocks + 1);
  const size_t layers = std::max<size_t>(4, std::min<size_t>(16, (size_t(16) << 30) / state_bytes));
  std::vector<int32_t> positions, owners, starts{0}, lengths, table;
  for (uint32_t s = 0; s < sequences; ++s) {
    for (uint32_t i = 0; i < fresh; ++i) positions.push_back(int32_t(known + i)), owners.push_back(int32_t(s));
    starts.push_back(int32_t(positions.size()));
    lengths.push_back(int32_t(length));
    for (uint32_t b = 0; b < blocks; ++b) table.push_back(int32_t(1 + b * sequences + s));
  }
  Step step{};
  step.tokens = tokens;
  step.sequences = step.rows = sequences;
  step.blocks_per_sequence = blocks;
  step.positions = arena.copy(positions.data(), positions.size());
  step.token_sequence = arena.copy(owners.data(), owners.size());
  step.sequence_start = arena.copy(starts.data(), starts.size());
  step.sequence_length = arena.copy(lengths.data(), lengths.size());
  step.block_table = arena.copy(table.data(), table.size());
  std::vector<float> frequencies(dim / 2);
  for (size_t i = 0; i < frequencies.size(); ++i) frequencies[i] = float(std::pow(5e5, -2.0 * double(i) / dim));
  Call call{};
  const uint32_t width = (heads + 2 * kv_heads) * dim;
  float* qkv = random_numbers<float>(arena, size_t(tokens) * width, [](float x) { return x; });
  const auto columns = [&](uint32_t from, uint32_t count) {
    return Matrix{reinterpret_cast<std::byte*>(qkv + from), width * 4, tokens, count, DType::f32};
  };
  call.inputs[0] = columns(0, heads * dim);
  call.inputs[1] = columns(heads * dim, kv_heads * dim);
  call.inputs[2] = columns((heads + kv_heads) * dim, kv_heads * dim);
  call.outputs[0] = {arena.take(size_t(tokens) * heads * dim * 4), heads * dim * 4, tokens, heads * dim, DType::bf16};
  call.weights[0] = {reinterpret_cast<const std::byte*>(arena.copy(frequencies.data(), frequencies.size())), 1,
                     dim / 2, DType::f32, Layout::row};
  call.params = &p;
  std::vector<std::byte*> states;
  for (size_t i = 0; i < layers; ++i)
    states.push_back(reinterpret_cast<std::byte*>(
        random_numbers<uint16_t>(arena, state_bytes / 2, [](float x) { return to_bf16(x); })));
  const cuda::Shape shape{std::max(1024u, length), fresh == 1, true};
  uint32_t launches = 0;
  call.states[0] = {states[0], unit, 32, dtype};
  const cuda::Workspace memory = workspace(cuda::attention_workspace(device(), call));
  const double us = time_launches(layers, [&](size_t i, cudaStream_t stream) {
    call.states[0] = {states[i], unit, 32, dtype};
    return cuda::attention({step, shape, device(), memory, stream,
                            &launches}, call);
  });
  const double bytes = double(sequences) * length * 2 * kv_heads * double(byte_size(dtype, dim));
  const double pairs = double(sequences) * (double(fresh) * known + double(fresh) * (fresh + 1) / 2);
  const double flops = pairs * 4 * heads * dim;
  std::printf("dtype %d heads %2u/%u dim %3u: %3u x (%4u + %4u) %8.1f us, %5.1f %% of reading, %5.1f TFLOP/s = %4.1f %%\n",
              int(dtype), heads, kv_heads, dim, sequences, known, fresh, us, bytes / us / kReadGigabytes / 10,
              flops / us / 1e6, flops / us / 1e4 / kTeraflops);
}

}  // namespace

int main(int count, char**) {
  if (count > 1) return time_case(32, 8, 128, 1, 6144, 2048), 0;  // for a profiler
  constexpr uint32_t models[][3] = {{32, 8, 64}, {32, 8, 128}};
  for (const auto& [heads, kv_heads, dim] : models) {
    for (uint32_t sequences : {1, 8, 32, 128})
      for (uint32_t known : {64, 544, 4095}) time_case(heads, kv_heads, dim, sequences, known, 1);
    time_case(heads, kv_heads, dim, 1, 32767, 1);
    time_case(heads, kv_heads, dim, 1, 0, 512);
    time_case(heads, kv_heads, dim, 1, 0, 2048);
    time_case(heads, kv_heads, dim, 1, 6144, 2048);
    time_case(heads, kv_heads, dim, 4, 0, 512);
    time_case(heads, kv_heads, dim, 128, 544, 1, DType::i8);
  }
}

// Microseconds of a layer of a decode step, its launches in a graph as a step has them: `layer_bench [dtypes]
// [sequences...]`, on shapes of real models, and the share of the read bandwidth that the bytes of weights and states come to.
#include <cmath>
#include <string>

#include "bench.h"

namespace ingot::cuda {
cudaError_t linear(const Context&, const Call&);
size_t linear_workspace(const Device&, const Call&);
cudaError_t attention(const Context&, const Call&);
size_t attention_workspace(const Device&, const Call&);
}  // namespace ingot::cuda

using namespace ingot;
using namespace ingot::test;

namespace {

constexpr double kReadGigabytes = 4284;  // measured ceiling of an H200

struct Shape {
  const char* name;
  uint32_t layers, hidden, ff, heads, kv_heads, dim;
  DType weights;
  uint32_t tokens, length;  // sequences, and the positions that each knows
};

// A decoder's layers on the device, of random numbers.
class Decoder {
  struct Linked { uint16_t opcode; const Call* call; cuda::Workspace workspace; };

 public:
  Decoder(const Shape& shape, Arena& arena) : shape(shape), arena(arena) {
    const uint32_t qkv = (shape.heads + 2 * shape.kv_heads) * shape.dim;
    const DType operand = shape.weights == DType::f16 ? DType::f16 : DType::bf16;
    make_step();
    norm = random_numbers<float>(arena, shape.hidden, [](float x) { return 1 + x / 8; });
    Matrix x = matrix(shape.hidden, DType::f32);
    x.data = numbers<float>(size_t{shape.tokens} * shape.hidden, [](float value) { return value; });
    linears.resize(4 * size_t{shape.layers});
    attentions.resize(shape.layers);
    for (uint32_t l = 0; l < shape.layers; ++l) {
      const Matrix projected = matrix(qkv, DType::f32), attended = matrix(shape.heads * shape.dim, operand);
      const Matrix middle = matrix(shape.hidden, DType::f32), gated = matrix(shape.ff, operand);
      const Matrix out = matrix(shape.hidden, DType::f32);
      add_linear(x, {}, projected, 1, true);
      add_attention(l, projected, attended);
      add_linear(attended, x, middle, 1, false);
      add_linear(middle, {}, gated, 2, true);
      add_linear(gated, middle, out, 1, false);
      x = out;
    }
    for (Linked& link : links) link.workspace = room(link);
  }

  std::vector<Linked> links;

  // States as they were made, outputs unknown.
  void reset() {
    for (const Linked& link : links) {
      const Matrix& out = link.call->outputs[0];
      CUDA_CHECK(cudaMemset(out.data, 0xff, out.rows * out.stride));
    }
    for (const auto& attention : attentions)
      CUDA_CHECK(cudaMemcpy(attention.call.states[0].base, fresh_state, state_bytes, cudaMemcpyDeviceToDevice));
  }
  cudaError_t run(cudaStream_t stream) {
    uint32_t launches = 0;
    for (const Linked& link : links) {
      const cuda::Context context{step, launch_shape, device(), link.workspace, stream, &launches, cuda::Choice::rules};
      const auto kernel = link.opcode == op::linear::id ? cuda::linear : cuda::attention;
      if (const cudaError_t error = kernel(context, *link.call)) return error;
    }
    return cudaSuccess;
  }
  // That a layer reads.
  double bytes() const {
    double all = 0;
    for (const Linked& link : links)
      if (link.opcode == op::linear::id)
        all += double(link.call->weights[0].rows) * link.call->weights[0].cols * dtype_bits(shape.weights) / 8;
    const double positions = double(step_positions);
    return all / shape.layers + positions * 2 * shape.kv_heads * shape.dim * 2;
  }

 private:
  struct Linear { Call call{}; op::linear::Params params{}; };
  struct Attention { Call call{}; op::attention::Params params{}; };

  Matrix matrix(uint32_t width, DType dtype) {
    return {arena.take(size_t{shape.tokens} * width * 4), size_t{width} * 4, shape.tokens, width, dtype};
  }
  void make_step() {
    const uint32_t blocks = shape.length / 32 + 1;
    std::vector<int32_t> positions, owners, starts{0}, table;
    for (uint32_t s = 0; s < shape.tokens; ++s) {
      positions.push_back(int32_t(shape.length));
      step_positions += shape.length + 1;
      owners.push_back(int32_t(s));
      starts.push_back(int32_t(s + 1));
      for (uint32_t b = 0; b < blocks; ++b) table.push_back(int32_t(1 + b * shape.tokens + s));
    }
    step.tokens = step.sequences = step.rows = shape.tokens;
    step.blocks_per_sequence = blocks;
    step.positions = arena.copy(positions.data(), positions.size());
    step.token_sequence = arena.copy(owners.data(), owners.size());
    step.sequence_start = arena.copy(starts.data(), starts.size());
    step.block_table = arena.copy(table.data(), table.size());
    launch_shape = {std::max(1024u, shape.length + 1), true, false};
    unit = size_t{2} * shape.kv_heads * 32 * shape.dim * 2;
    state_bytes = unit * (1 + size_t{blocks} * shape.tokens);
    fresh_state = half_numbers(state_bytes / 2);
    std::vector<float> frequencies(shape.dim / 2);
    for (size_t i = 0; i < frequencies.size(); ++i) frequencies[i] = float(std::pow(5e5, -2.0 * double(i) / shape.dim));
    inv_freq = reinterpret_cast<const std::byte*>(arena.copy(frequencies.data(), frequencies.size()));
  }
  template <class T, class F>
  std::byte* numbers(size_t count, const F& convert) {
    return reinterpret_cast<std::byte*>(random_numbers<T>(arena, count, convert));
  }
  std::byte* half_numbers(size_t count, float scale = 1) {
    const bool half = shape.weights == DType::f16;
    return numbers<uint16_t>(count, [=](float x) { return half ? to_f16(x * scale) : to_bf16(x * scale); });
  }
  std::byte* byte_numbers(size_t count) {
    return numbers<int8_t>(count, [](float x) { return int8_t(std::lround(x * 31)); });
  }
  void add_linear(const Matrix& x, const Matrix& residual, const Matrix& out, uint32_t branches, bool normed) {
    Linear& at = linears[added++];
    const uint32_t k = x.width, n = out.width, rows = (n * branches + 15) / 16 * 16;
    const uint32_t blocks = (k + 255) / 256, groups = (k + 31) / 32;
    const size_t count = size_t{rows} * ((k + 31) / 32 * 32);
    const Activation activation = branches == 2 ? Activation::silu : Activation::none;
    at.params = {sizeof at.params, 1, 1, n, k, uint32_t(activation), branches, 1e-5f, 0.0f};
    at.call.params = &at.params;
    at.call.inputs[0] = x;
    at.call.inputs[1] = residual;
    at.call.outputs[0] = out;
    const bool whole = shape.weights == DType::bf16 || shape.weights == DType::f16;
    const std::byte* weight = whole ? half_numbers(count, 1 / std::sqrt(float(k)))
                                    : byte_numbers(count * dtype_bits(shape.weights) / 8);
    at.call.weights[0] = {weight, rows, k, shape.weights, Layout::row};
    const auto scale_of = [](float x) { return 1e-4f * (2 + x / 4); };
    if (shape.weights == DType::e4m3)
      at.call.weights[1] = {numbers<float>(rows, scale_of), rows, 1, DType::f32, Layout::row};
    else if (!whole)
      at.call.weights[1] = {numbers<uint16_t>(size_t{rows} * blocks, [&](float x) { return to_f16(scale_of(x)); }),
                            rows, blocks, DType::f16, Layout::row};
    if (shape.weights == DType::i4)
      at.call.weights[3] = {byte_numbers(size_t{rows} * groups), rows, groups, DType::i8, Layout::row};
    if (normed) at.call.weights[4] = {reinterpret_cast<std::byte*>(norm), 1, k, DType::f32, Layout::row};
    links.push_back({uint16_t(op::linear::id), &at.call, {}});
  }
  void add_attention(uint32_t layer, const Matrix& projected, const Matrix& out) {
    Attention& at = attentions[layer];
    op::attention::Params& p = at.params;
    p.heads = shape.heads, p.kv_heads = shape.kv_heads, p.head_dim = p.rope_dim = shape.dim;
    p.scale = 1 / std::sqrt(float(shape.dim)), p.causal = 1, p.attention_factor = 1;
    at.call.params = &p;
    uint32_t from = 0;
    for (size_t i = 0; i < 3; ++i) {
      const uint32_t width = (i ? shape.kv_heads : shape.heads) * shape.dim;
      at.call.inputs[i] = {projected.data + from * sizeof(float), projected.stride, shape.tokens, width, DType::f32};
      from += width;
    }
    at.call.outputs[0] = out;
    at.call.weights[0] = {inv_freq, 1, shape.dim / 2, DType::f32, Layout::row};
    at.call.states[0] = {arena.take(state_bytes), unit, 32, shape.weights == DType::f16 ? DType::f16 : DType::bf16};
    links.push_back({uint16_t(op::attention::id), &at.call, {}});
  }
  cuda::Workspace room(const Linked& link) {
    const bool product = link.opcode == op::linear::id;
    const size_t bytes = (product ? cuda::linear_workspace : cuda::attention_workspace)(device(), *link.call);
    std::byte*& at = memory[product];
    if (!at) CUDA_CHECK(cudaMemset(at = arena.take(size_t{512} << 20), 0, size_t{512} << 20));
    CHECK(bytes <= size_t{512} << 20);
    return {at, bytes};
  }

  const Shape shape;
  Arena& arena;
  Step step{};
  cuda::Shape launch_shape{};
  float* norm;
  const std::byte* inv_freq;
  std::byte *fresh_state, *memory[2] = {};
  size_t unit, state_bytes, added = 0, step_positions = 0;
  std::vector<Linear> linears;
  std::vector<Attention> attentions;
};

const char* name(DType dtype) {
  return dtype == DType::bf16 ? "bf16" : dtype == DType::i8 ? "i8" : dtype == DType::i4 ? "i4" : "e4m3";
}

void time_shape(const Shape& shape, Arena& arena) {
  arena.clear();
  Decoder decoder(shape, arena);
  decoder.reset();
  CUDA_CHECK(decoder.run(nullptr));
  CUDA_CHECK(cudaDeviceSynchronize());
  const double us = time_launches(2, [&](size_t, cudaStream_t stream) { return decoder.run(stream); }) / shape.layers;
  std::printf("%s %-4s %3u x %u: %7.1f us a layer, %3.0f %% of reading\n", shape.name, name(shape.weights),
              shape.tokens, shape.length, us, decoder.bytes() / us / kReadGigabytes / 10);
  std::fflush(stdout);
}

}  // namespace

int main(int count, char** arguments) {
  Arena arena(size_t(32) << 30);
  std::vector<uint32_t> sequences;
  std::string only;
  for (int i = 1; i < count; ++i)
    std::isdigit(*arguments[i]) ? sequences.push_back(uint32_t(std::atoi(arguments[i]))) : void(only += arguments[i]);
  if (sequences.empty()) sequences = {1, 8};
  for (const DType dtype : {DType::bf16, DType::i8, DType::i4, DType::e4m3})
    for (const uint32_t tokens : sequences) {
      if (!only.empty() && only.find(name(dtype)) == std::string::npos) continue;
      time_shape({"1B", 16, 2048, 8192, 32, 8, 64, dtype, tokens, 544}, arena);
      time_shape({"8B", 16, 4096, 14336, 32, 8, 128, dtype, tokens, 544}, arena);
    }
}

// Speed of the kernels that carry a model, per instruction set: kernels_bench [threads].
#include <algorithm>
#include <chrono>
#include <cstdio>

#include "../cpu/probe.h"
#include "kernels.h"

using namespace ingot;
using namespace ingot::test;

namespace {

// Seconds of one call: the best of several, after one to warm up.
double seconds(const KernelTable& table, unsigned threads, uint16_t opcode, const Step& step, const Call& call) {
  using Clock = std::chrono::steady_clock;
  run_on(table, threads, opcode, step, call);
  double best = 1e9, spent = 0;
  while (spent < 0.15) {
    const auto start = Clock::now();
    run_on(table, threads, opcode, step, call);
    const double taken = std::chrono::duration<double>(Clock::now() - start).count();
    best = std::min(best, taken);
    spent += taken;
  }
  return best;
}

void ceilings(const cpu::InstructionSet& set, unsigned threads) {
  cpu::Ceilings ceilings;
  if (cpu::measure_ceilings(set, threads, ceilings)) return;
  for (cpu::Measurement& m : ceilings.measurements) {
    std::sort(m.samples.begin(), m.samples.end());
    std::printf("  ceiling %s: %.1f %s\n", m.name, m.samples[m.samples.size() / 2],
                std::strncmp(m.name, "read", 4) ? "GOP/s" : "GB/s");
  }
}

void product(const cpu::InstructionSet& set, unsigned threads, DType dtype, size_t m, size_t n, size_t k) {
  const auto tensor = [&](DType type, size_t cols) { return std::vector<std::byte>(byte_size(type, n * cols)); };
  const size_t blocks = spans(k, kQuantBlock), groups = spans(k, kQuantGroup);
  const auto weight = tensor(dtype, k), scales = tensor(DType::f16, has_scales(dtype) ? blocks : 0);
  const auto sub_scales = tensor(DType::i8, dtype == DType::i4 ? groups : 0);
  Register x(m, k), out(m, n);
  Random random(1);
  x.fill(random);
  const op::linear::Params params{32, 1, 1, uint32_t(n), uint32_t(k), 0, 1, 0, 0};
  Call call{};
  call.inputs[0] = x.matrix();
  call.outputs[0] = out.matrix();
  const auto give = [&](size_t slot, const std::vector<std::byte>& bytes, size_t cols, DType type, Layout layout) {
    if (!bytes.empty()) call.weights[slot] = {bytes.data(), uint32_t(n), uint32_t(cols), type, layout};
  };
  give(op::linear::weight_weight, weight, k, dtype, layout_of(dtype));
  give(op::linear::weight_scales, scales, blocks, DType::f16, Layout::tile16);
  give(op::linear::weight_sub_scales, sub_scales, groups, DType::i8, Layout::tile16);
  call.params = &params;
  const double s = seconds(*set.table, threads, op::linear::id, Step{}, call);
  const char* name = dtype == DType::i4 ? "q4" : dtype == DType::i8 ? "q8" : "bf16";
  const double gigabytes = double(weight.size() + scales.size() + sub_scales.size()) * 1e-9;
  const double gigaflops = 2e-9 * double(m * n * k);
  std::printf("  linear %-4s %4zu x %zu x %zu: %8.1f us %7.1f GB/s %8.1f GFLOP/s\n", name, m, n, k, s * 1e6,
              gigabytes / s, gigaflops / s);
}

struct Heads { const char* model; uint32_t heads, kv_heads, dim; };

// `sequences` of `tokens` new tokens each, after `past` positions that a state of `dtype` holds.
void attention(const cpu::InstructionSet& set, unsigned threads, const Heads& shape, DType dtype, size_t sequences,
               size_t tokens, size_t past) {
  const auto [model, heads, kv_heads, dim] = shape;
  const EvenStep step(sequences, tokens, past);
  const size_t blocks = step.blocks_per_sequence, rows = step.tokens;
  const size_t size = 2 * kv_heads * 32 * (byte_size(dtype, dim) + (dtype == DType::i8 ? 4 : 0));
  Random random(1);
  std::vector<uint16_t> state(sequences * blocks * size / 2);
  // +-0.5 to 2 as bf16
  for (uint16_t& element : state) element = uint16_t(0x3f00 + random.below(256) + random.below(2) * 0x8000);
  Register q(rows, heads * dim), k(rows, kv_heads * dim), v(rows, kv_heads * dim), out(rows, heads * dim);
  for (Register* r : {&q, &k, &v}) r->fill(random);
  op::attention::Params params{};
  params.heads = heads;
  params.kv_heads = kv_heads;
  params.head_dim = dim;
  params.scale = 1 / std::sqrt(float(dim));
  params.causal = 1;
  Call call{};
  call.inputs[0] = q.matrix();
  call.inputs[1] = k.matrix();
  call.inputs[2] = v.matrix();
  call.outputs[0] = out.matrix();
  call.states[0] = {reinterpret_cast<std::byte*>(state.data()), size, 32, dtype};
  call.params = &params;
  const double s = seconds(*set.table, threads, op::attention::id, step, call);
  const double seen = double(rows) * (double(past) + double(tokens + 1) / 2);
  const double gigabytes = double(sequences * blocks * size) * 1e-9, gigaflops = seen * heads * dim * 4e-9;
  std::printf("  attention %s, %s, %zu x %3zu tokens after %5zu: %8.1f us %7.1f GB/s %8.1f GFLOP/s\n", model,
              dtype == DType::i8 ? "q8" : "bf16", sequences, tokens, past, s * 1e6, gigabytes / s, gigaflops / s);
}

void sampling(const cpu::InstructionSet& set, unsigned threads, const char* name, SampleParams p) {
  constexpr size_t vocab = 128256;
  Register logits(1, vocab), tokens(1, 1, DType::i32), logprobs(1, 21), top(1, 20, DType::i32);
  Random random(1);
  logits.fill(random, 3);
  p.flags = kSampleFlagSample;
  p.repetition_penalty = 1;
  Step step{};
  step.rows = 1;
  step.sampling = &p;
  const op::sample::Params params{12, 1, 0, vocab};
  Call call{};
  call.inputs[0] = logits.matrix();
  call.outputs[0] = tokens.matrix();
  call.outputs[1] = logprobs.matrix();
  call.outputs[2] = top.matrix();
  call.params = &params;
  std::printf("  sample %s of 128256: %.1f us\n", name, seconds(*set.table, threads, op::sample::id, step, call) * 1e6);
}

}  // namespace

int main(int argc, char** argv) {
  const unsigned threads = argc > 1 ? unsigned(std::atoi(argv[1])) : 1;
  for (const cpu::InstructionSet& set : cpu::instruction_sets()) {
    if (!set.table || (argc > 2 && std::strcmp(argv[2], set.name))) continue;
    std::printf("%s, %u threads\n", set.name, threads);
    ceilings(set, threads);
    for (DType dtype : {DType::bf16, DType::i8, DType::i4}) {
      product(set, threads, dtype, 1, 256, 256);      // in L2
      product(set, threads, dtype, 1, 16384, 8192);   // in memory
      for (size_t m : {4, 8, 64, 256}) product(set, threads, dtype, m, 2048, 2048);
      for (size_t m : {1, 8, 32}) product(set, threads, dtype, m, 65536, 8192);
      for (size_t k : {2048, 8192}) product(set, threads, dtype, 512, 18432 - k, k);
    }
    for (const Heads& shape : {Heads{"Llama-3.2-1B", 32, 8, 64}, Heads{"Qwen3-0.6B", 16, 8, 128}}) {
      for (DType dtype : {DType::bf16, DType::i8}) {
        for (size_t past : {512, 8192, 32768}) attention(set, threads, shape, dtype, 1, 1, past - 1);
        attention(set, threads, shape, dtype, 8, 1, 255);
        attention(set, threads, shape, dtype, 1, 512, 0);
      }
    }
    SampleParams p{};
    p.top_p = 1;
    sampling(set, threads, "greedy", p);
    p.temperature = 1;
    sampling(set, threads, "temperature", p);
    p.top_k = 40;
    sampling(set, threads, "top_k 40", p);
    p.top_k = 0;
    p.top_p = 0.5f;
    sampling(set, threads, "top_p 0.5", p);
  }
}

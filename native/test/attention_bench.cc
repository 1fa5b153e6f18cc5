// How fast attention of sequences that decode reads its state: attention_bench [--seconds S] [--threads T]
// [--sequences N] [--context N] [--tokens N] [--heads Q,KV,DIM] [--layers N] [--only NAME,...] [--large-pages] [--check].
// variants.sh builds it. --tokens: of each sequence's context, how many this step takes; 512 of 512 are a prompt.
//
// Every kernel is checked for bits against the first, outputs and state, over odd steps; then all take turns over states
// that no cache holds (--layers: of so many layers), one after the other as layers of a model are: medians over calls,
// and their share of the read limit measured in the same run. `quiet` is of the quickest tenth of the calls, as in
// prefill_bench.
#define INGOT_KERNEL attention
#include <array>

#include "variants.h"

using namespace ingot;
using namespace ingot::test;

namespace {

struct Options : VariantOptions {
  size_t sequences = 8, context = 256, tokens = 1, layers = 0;
  std::array<uint32_t, 3> heads{32, 8, 64};  // of queries, of keys, their size: a Llama-3.2-1B
};

const char* name_of(DType dtype) { return dtype == DType::i8 ? "q8" : "bf16"; }

// A step of sequences, each of which has `past` positions and takes `tokens` more, and what a layer computes of it.
struct Layers {
  DType dtype;
  EvenStep step;
  op::attention::Params params{};
  std::vector<State> states;  // of each layer
  std::vector<float> inv_freq;
  Matrix q, k, v, out;
  size_t bytes;  // of a state

  Layers(DType dtype, std::array<uint32_t, 3> shape, size_t sequences, size_t tokens, size_t past, size_t layers, bool large)
      : dtype(dtype), step(sequences, tokens, past) {
    const auto [heads, kv_heads, dim] = shape;
    const size_t blocks = step.blocks_per_sequence, rows = step.tokens;
    params.heads = heads;
    params.kv_heads = kv_heads;
    params.head_dim = dim;
    params.rope_dim = dim;
    params.attention_factor = 1;
    params.scale = 1 / std::sqrt(float(dim));
    params.causal = 1;
    for (uint32_t i = 0; i < dim / 2; ++i) inv_freq.push_back(std::pow(5e5f, -2.0f * float(i) / float(dim)));
    const size_t padded = (dim + 15) / 16 * 16;
    const size_t unit = 2 * kv_heads * kBlockTokens * (byte_size(dtype, padded) + (dtype == DType::i8 ? 4 : 0));
    bytes = unit * sequences * blocks;
    Fast random;
    for (size_t i = 0; i < layers; ++i) {
      states.push_back({pages(bytes, large), unit, kBlockTokens, dtype});
      auto* words = reinterpret_cast<uint64_t*>(states[i].base);
      // +-0.5 to 2 as bf16 and, so that scales are numbers, as f32
      for (size_t w = 0; w < bytes / 8; ++w) words[w] = (random() & 0x80ff80ff80ff80ff) | 0x3f003f003f003f00;
    }
    q = Rows(rows, heads * dim, &random).matrix;
    k = Rows(rows, kv_heads * dim, &random).matrix;
    v = Rows(rows, kv_heads * dim, &random).matrix;
    out = Rows(rows, heads * dim, nullptr).matrix;
  }
  Layers(const Layers&) = delete;

  Call call(size_t layer) {
    Call call{};
    call.inputs[op::attention::in_q] = q;
    call.inputs[op::attention::in_k] = k;
    call.inputs[op::attention::in_v] = v;
    call.outputs[0] = out;
    call.weights[op::attention::weight_inv_freq] =
        {reinterpret_cast<std::byte*>(inv_freq.data()), 1, uint32_t(inv_freq.size()), DType::f32, Layout::row};
    call.states[0] = states[layer];
    call.params = &params;
    return call;
  }
  uint64_t digests(size_t layer) const {
    return digest(out) ^ digest({states[layer].base, bytes, 1, uint32_t(bytes / 4), DType::f32});
  }
};

struct Odd { std::array<uint32_t, 3> heads; size_t sequences, tokens, past; };
constexpr Odd kOdd[] = {{{8, 2, 64}, 1, 1, 0},    {{8, 2, 64}, 3, 1, 255},  {{8, 2, 64}, 2, 1, 700},
                        {{4, 4, 128}, 3, 1, 63},  {{6, 2, 80}, 2, 3, 290},  {{8, 1, 64}, 2, 9, 31},
                        {{8, 2, 64}, 1, 70, 0},   {{4, 2, 16}, 5, 1, 100}};

// All exact contenders give the bits of the first; returns whether they do.
bool same_bits(Bench& bench, const std::vector<Contender>& contenders) {
  bool same = true;
  for (DType dtype : {DType::bf16, DType::i8}) {
    for (const Odd& odd : kOdd) {
      uint64_t expected = 0;
      for (const Contender& c : contenders) {
        if (!c.exact) continue;
        Layers layers(dtype, odd.heads, odd.sequences, odd.tokens, odd.past, 1, false);
        bench.run(c.kernel, layers.step, layers.call(0));
        const uint64_t got = layers.digests(0);
        if (&c == &contenders[0]) expected = got;
        if (got == expected) continue;
        std::printf("DIFFERS %s: %s, heads %u %u of %u, %zu x %zu tokens after %zu\n", c.name.c_str(), name_of(dtype),
                    odd.heads[0], odd.heads[1], odd.heads[2], odd.sequences, odd.tokens, odd.past);
        same = false;
      }
    }
  }
  return same;
}

void report(const Layers& layers, const std::vector<Contender>& contenders,
            const std::vector<std::vector<double>>& seconds, const Options& o, double limit) {
  std::printf("\n%s, %zu x %zu tokens after %zu, %zu layers of %.1f MB, read limit %.1f GB/s, %zu calls each\n",
              name_of(layers.dtype), o.sequences, o.tokens, o.context - o.tokens, layers.states.size(),
              double(layers.bytes) * 1e-6, limit, seconds[0].size());
  std::printf("  %-24s%12s%8s%8s%12s%8s%8s%8s\n", "", "us a call", "GB/s", "share", "quiet", "GB/s", "share", "ratio");
  for (size_t c = 0; c < contenders.size(); ++c) {
    const double usual = median(seconds[c]), quiet = quantile(seconds[c], 0.1);
    const auto rate = [&](double s) { return double(layers.bytes) / s * 1e-9; };
    const auto share = [&](double s) { return limit > 0 ? 100 * rate(s) / limit : 0; };
    std::printf("  %-24s%12.1f%8.1f%7.1f%%%12.1f%8.1f%7.1f%%%8.2f%s\n", contenders[c].name.c_str(), usual * 1e6,
                rate(usual), share(usual), quiet * 1e6, rate(quiet), share(quiet), median(seconds[0]) / usual,
                contenders[c].exact ? "" : "  (wrong bits: something left out)");
  }
  std::fflush(stdout);
}

Options options_of(int argc, char** argv) {
  Options o;
  o.seconds = 20;
  parse(argc, argv, o, [&](const std::string& a, const auto& value) {
    auto& [heads, kv_heads, dim] = o.heads;
    if (a == "--sequences") o.sequences = size_t(std::atoi(value()));
    else if (a == "--context") o.context = size_t(std::atoi(value()));
    else if (a == "--tokens") o.tokens = size_t(std::atoi(value()));
    else if (a == "--layers") o.layers = size_t(std::atoi(value()));
    else if (a != "--heads" || std::sscanf(value(), "%u,%u,%u", &heads, &kv_heads, &dim) != 3) return false;
    return true;
  });
  const auto [heads, kv_heads, dim] = o.heads;
  if (!o.sequences || !o.tokens || o.tokens > o.context || !dim || dim % 2 || !heads || !kv_heads || heads % kv_heads) {
    std::fprintf(stderr, "attention_bench: --sequences and --tokens from 1, --context from --tokens; --heads queries, keys "
                         "that divide them, and their even size: 32,8,64\n");
    std::exit(2);
  }
  return o;
}

}  // namespace

int main(int argc, char** argv) {
  const Options o = options_of(argc, argv);
  const FlushDenormals flush;
  const std::vector<Contender> contenders = contenders_of(op::attention::id, o.only);
  const cpu::InstructionSet& best = best_set();
  Bench bench;
  const bool same = check_bits(bench, o.threads, [&] { return same_bits(bench, contenders); });
  if (o.check) return same ? 0 : 1;
  for (DType dtype : {DType::bf16, DType::i8}) {
    constexpr size_t kLeastBytes = size_t{1} << 30;
    Layers probe(dtype, o.heads, o.sequences, o.tokens, o.context - o.tokens, 0, false);
    const size_t count = o.layers ? o.layers : kLeastBytes / probe.bytes + 1;
    Layers layers(dtype, o.heads, o.sequences, o.tokens, o.context - o.tokens, count, o.large_pages);
    const double before = ceiling(ceilings_of(best, o.threads), "read");
    std::vector<std::vector<double>> seconds(contenders.size());
    {
      const ThreadPool::Lease lease(ThreadPool::shared(), o.threads, true);
      for (const Contender& c : contenders) bench.run(c.kernel, layers.step, layers.call(0));
      const auto start = Clock::now();
      for (size_t round = 0; round < 1 || since(start) < o.seconds / 2; ++round)
        for (size_t i = 0; i < contenders.size(); ++i) {
          const size_t c = (round * 7 + i) % contenders.size();
          for (size_t layer = 0; layer < count; ++layer)
            seconds[c].push_back(bench.run(contenders[c].kernel, layers.step, layers.call(layer)));
        }
    }
    report(layers, contenders, seconds, o, std::max(before, ceiling(ceilings_of(best, o.threads), "read")));
  }
  return same ? 0 : 1;
}

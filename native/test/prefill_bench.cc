// How near the products of a prefill come to the peak of the matrix units: prefill_bench [--seconds S] [--threads T]
// [--rows R] [--only NAME,...] [--formats q4,q8,bf16] [--large-pages] [--check]. variants.sh builds it.
//
// Every kernel is checked for bits against the first at odd sizes, then all take turns over weights that no cache holds,
// in the shapes of a Llama-3.2-1B: medians over rounds, and their share of the peak measured in the same run. Where
// another machine's threads share a core, everything here takes up to four times as long for tenths of a second: single
// products, and `quiet`, their share of the peak together, are of the quickest tenth of the calls.
#define INGOT_KERNEL linear
#include <array>

#include "variants.h"

using namespace ingot;
using namespace ingot::test;

namespace {

struct Options : VariantOptions {
  size_t rows = 512;
  std::string formats = "q4,q8,bf16";
};

const char* name_of(DType dtype) { return dtype == DType::i4 ? "q4" : dtype == DType::i8 ? "q8" : "bf16"; }

struct Shape { const char* name; uint32_t n, k, branches; bool norm; };
constexpr Shape kShapes[] = {
    {"q k v", 3072, 2048, 1, true},
    {"attention out", 2048, 2048, 1, false},
    {"gate, up", 8192, 2048, 2, true},
    {"down", 2048, 8192, 1, false},
};
constexpr size_t kShapeCount = std::size(kShapes);

size_t padded(size_t n, size_t to) { return (n + to - 1) / to * to; }

// Random weights of one product: what a package would hold.
struct Factors {
  Weight weight, scales, sub_scales;
  size_t bytes;
};
Factors make_factors(DType dtype, uint32_t n, uint32_t k, Fast& random, bool large) {
  const size_t rows = padded(n, 16), cols = padded(k, 32);
  const uint32_t blocks = uint32_t(spans(k, kQuantBlock)), groups = uint32_t(spans(k, kQuantGroup));
  const size_t bytes = byte_size(dtype, rows * cols);
  const size_t scale_bytes = has_scales(dtype) ? rows * blocks * 2 : 0, sub_bytes = dtype == DType::i4 ? rows * groups : 0;
  std::byte* const data = pages(bytes + padded(scale_bytes, 64) + sub_bytes, large);
  auto* words = reinterpret_cast<uint64_t*>(data);
  for (size_t i = 0; i < bytes / 8; ++i) {
    uint64_t w = random();
    // bf16: +-2^-5 to 2^-4; int8: never -128
    if (dtype == DType::bf16) w = (w & 0x807f807f807f807f) | 0x3d003d003d003d00;
    if (dtype == DType::i8) w &= 0xbfbfbfbfbfbfbfbf;
    words[i] = w;
  }
  auto* scales = reinterpret_cast<uint16_t*>(data + bytes);
  for (size_t i = 0; i < scale_bytes / 2; ++i) scales[i] = uint16_t(0x1000 + random() % 0x800);
  auto* subs = reinterpret_cast<int8_t*>(data + bytes + padded(scale_bytes, 64));
  for (size_t i = 0; i < sub_bytes; ++i) subs[i] = int8_t(int(random() % 31) - 15);
  Factors f{{data, n, k, dtype, layout_of(dtype)}, {}, {}, bytes + scale_bytes + sub_bytes};
  if (scale_bytes) f.scales = {data + bytes, n, blocks, DType::f16, Layout::tile16};
  if (sub_bytes) f.sub_scales = {reinterpret_cast<std::byte*>(subs), n, groups, DType::i8, Layout::tile16};
  return f;
}

struct Product {
  Call call{};
  op::linear::Params params;
  Product(const Factors& f, uint32_t branches, uint32_t width, uint32_t k, Matrix x, Matrix out, const Weight& norm,
          Matrix residual)
      : params{32, 1, 1, width, k, uint32_t(branches == 2 ? Activation::silu : Activation::none), branches, 1e-5f, 0} {
    call.inputs[op::linear::in_x] = x;
    call.inputs[op::linear::in_residual] = residual;
    call.outputs[0] = out;
    call.weights[op::linear::weight_weight] = f.weight;
    call.weights[op::linear::weight_scales] = f.scales;
    call.weights[op::linear::weight_sub_scales] = f.sub_scales;
    call.weights[op::linear::weight_norm] = norm;
  }
  Product(const Product&) = delete;
  const Call& operator()() { return call.params = &params, call; }
  void hand_to(Product& reader) { call.reader = &reader.call, reader.call.writer = &call; }
};

// All exact contenders give the bits of the first; returns whether they do.
bool same_bits(Bench& bench, const std::vector<Contender>& contenders, bool large) {
  Fast random;
  bool same = true;
  const size_t rows[] = {1, 2, 3, 5, 8, 9, 13, 16, 31, 33, 50, 70, 97, 530};
  const std::array<uint32_t, 2> sizes[] = {{48, 32},  {100, 96},  {64, 256},   {272, 288},
                                           {304, 2080}, {80, 4672}, {1072, 1024}};
  for (DType dtype : {DType::i4, DType::i8, DType::bf16}) {
    for (const auto& [n, k] : sizes) {
      for (uint32_t branches : {1u, 2u}) {
        const Factors f = make_factors(dtype, uint32_t(padded(n, 16)) * branches, k, random, large);
        for (size_t m : rows) {
          if (m > 100 && (k > 2080 || k < 288)) continue;
          Rows x(m, k, &random), residual(m, n, &random);
          std::vector<float> norm(k, 0.75f);
          const Rows out(m, n, nullptr);
          uint64_t expected = 0;
          for (const Contender& c : contenders) {
            if (!c.exact) continue;
            for (size_t r = 0; r < m; ++r) std::memset(out.matrix.row<float>(r), 0, out.matrix.stride);
            const Weight ones{reinterpret_cast<std::byte*>(norm.data()), 1, k, DType::f32, Layout::row};
            Product p(f, branches, n, k, x.matrix, out.matrix, branches == 2 ? ones : Weight{}, residual.matrix);
            bench.run(c.kernel, Step{}, p());
            const uint64_t got = digest(out.matrix);
            if (&c == &contenders[0]) expected = got;
            if (got != expected) {
              std::printf("DIFFERS %s: %s %zu rows, %u outputs, %u along K, %u branches\n", c.name.c_str(),
                          name_of(dtype), m, n, k, branches);
              same = false;
            }
          }
        }
      }
    }
  }
  return same;
}

// Two products, of which the second reads what the first leaves: the same bits as the second has alone.
bool same_bits_of_pairs(Bench& bench, const std::vector<Contender>& contenders, bool large) {
  Fast random;
  bool same = true;
  constexpr uint32_t k = 96, n = 48;
  for (DType dtype : {DType::i4, DType::i8, DType::bf16}) {
    for (uint32_t between : {32u, 64u, 96u, 320u, 512u, 1088u}) {
      for (uint32_t branches : {1u, 2u}) {
        const Factors first = make_factors(dtype, uint32_t(padded(between, 16)) * branches, k, random, large);
        const Factors second = make_factors(dtype, n, between, random, large);
        for (size_t m : {64, 65, 97, 530}) {
          const Rows x(m, k, &random), middle(m, between, nullptr), out(m, n, nullptr);
          uint64_t expected = 0;
          for (const Contender& c : contenders) {
            if (!c.exact) continue;
            Product a(first, branches, between, k, x.matrix, middle.matrix, {}, {});
            Product b(second, 1, n, between, middle.matrix, out.matrix, {}, {});
            if (&c != &contenders.back()) a.hand_to(b);  // the last: none is handed on
            bench.run(c.kernel, Step{}, a());
            bench.run(c.kernel, Step{}, b());
            const uint64_t got = digest(out.matrix);
            if (&c == &contenders[0]) expected = got;
            if (got == expected) continue;
            std::printf("DIFFERS %s: %s %zu rows, %u between, %u branches\n", c.name.c_str(), name_of(dtype), m, between,
                        branches);
            same = false;
          }
        }
      }
    }
  }
  return same;
}

// Layers of one format, until no cache holds their weights.
struct Stack {
  DType dtype;
  std::vector<std::array<std::unique_ptr<Product>, kShapeCount>> layers;
  Stack(DType dtype, size_t rows, bool large) : dtype(dtype) {
    constexpr size_t kLeastBytes = size_t{360} << 20;
    Fast random;
    std::vector<Matrix> xs, outs, residuals;
    static std::vector<float> ones(8192, 1.0f);
    const Weight ones_weight{reinterpret_cast<std::byte*>(ones.data()), 1, 2048, DType::f32, Layout::row};
    for (const Shape& s : kShapes) outs.push_back(Rows(rows, s.n, &random).matrix);
    // What a layer hands on, so that caches hold of it what they would.
    enum { attention_out = 1, gate_up, down };  // of kShapes
    xs = {outs[down], Rows(rows, kShapes[attention_out].k, &random).matrix, outs[attention_out], outs[gate_up]};
    residuals = {{}, outs[down], {}, outs[attention_out]};
    for (size_t bytes = 0; bytes < kLeastBytes;) {
      layers.emplace_back();
      for (size_t i = 0; i < kShapeCount; ++i) {
        const Shape& s = kShapes[i];
        const Factors f = make_factors(dtype, s.n * s.branches, s.k, random, large);
        bytes += f.bytes;
        layers.back()[i] = std::make_unique<Product>(f, s.branches, s.n, s.k, xs[i], outs[i],
                                                     s.norm ? ones_weight : Weight{}, residuals[i]);
      }
      layers.back()[gate_up]->hand_to(*layers.back()[down]);
    }
  }
};

// Peak of the unit that multiplies a format, in operations a second.
double peak(const cpu::Ceilings& ceilings, DType dtype) {
  return 1e9 * std::max(ceiling(ceilings, dtype == DType::bf16 ? "bf16" : "i8"), ceiling(ceilings, "f32"));
}

// seconds[contender][shape]: of each call, a round after the other.
using Times = std::vector<std::array<std::vector<double>, kShapeCount>>;

void one_round(Bench& bench, Stack& stack, const std::vector<Contender>& contenders, size_t first, Times& times) {
  for (size_t i = 0; i < contenders.size(); ++i) {
    const size_t c = (first + i) % contenders.size();
    for (auto& layer : stack.layers)
      for (size_t s = 0; s < kShapeCount; ++s) times[c][s].push_back(bench.run(contenders[c].kernel, Step{}, (*layer[s])()));
  }
}

// Seconds of each round, all layers and shapes.
std::vector<double> rounds_of(const std::array<std::vector<double>, kShapeCount>& calls, size_t layers) {
  std::vector<double> rounds(calls[0].size() / layers);
  for (const std::vector<double>& shape : calls)
    for (size_t i = 0; i < shape.size(); ++i) rounds[i / layers] += shape[i];
  return rounds;
}

void report(const Stack& stack, const std::vector<Contender>& contenders, const Times& times, size_t rows, double peak) {
  const size_t layers = stack.layers.size();
  const std::vector<double> base = rounds_of(times[0], layers);
  std::printf("\n%s, %zu rows, %zu layers, %zu rounds, peak %.2f T/s: ", name_of(stack.dtype), rows, layers, base.size(),
              peak * 1e-12);
  std::printf("T/s by product (quickest tenth) and of all, share of the peak, against the first\n");
  std::printf("  %-24s", "");
  for (const Shape& s : kShapes) std::printf("%14s", s.name);
  std::printf("%10s%8s%8s%22s\n", "all", "share", "quiet", "ratio [least, most]");
  for (size_t c = 0; c < contenders.size(); ++c) {
    std::printf("  %-24s", contenders[c].name.c_str());
    double operations = 0, quiet = 0;
    for (size_t s = 0; s < kShapeCount; ++s) {
      const Shape& shape = kShapes[s];
      const double work = 2.0 * double(rows) * shape.n * shape.branches * shape.k;
      operations += work;
      quiet += quantile(times[c][s], 0.1);
      std::printf("%14.2f", work / quantile(times[c][s], 0.1) * 1e-12);
    }
    const std::vector<double> all = rounds_of(times[c], layers);
    std::vector<double> ratios;
    for (size_t i = 0; i < all.size(); ++i) ratios.push_back(base[i] / all[i]);
    const double rate = operations * double(layers) / median(all);
    const auto share = [&](double speed) { return peak ? 100 * speed / peak : 0; };
    std::printf("%10.2f%7.1f%%%7.1f%%%9.2f [%.2f, %.2f]%s\n", rate * 1e-12, share(rate), share(operations / quiet),
                median(ratios), quantile(ratios, 0), quantile(ratios, 1),
                contenders[c].exact ? "" : "  (wrong bits: something left out)");
  }
  std::fflush(stdout);
}

Options options_of(int argc, char** argv) {
  Options o;
  o.seconds = 60;
  parse(argc, argv, o, [&](const std::string& a, const auto& value) {
    if (a == "--rows") o.rows = size_t(std::atoi(value()));
    else if (a == "--formats") o.formats = value();
    else return false;
    return true;
  });
  return o;
}

}  // namespace

int main(int argc, char** argv) {
  const Options o = options_of(argc, argv);
  const FlushDenormals flush;
  std::vector<Contender> contenders = contenders_of(op::linear::id, o.only);
  const cpu::InstructionSet& best = best_set();
  Bench bench;
  const bool same = check_bits(bench, o.threads, [&] {
    const bool alone = same_bits(bench, contenders, o.large_pages);
    return same_bits_of_pairs(bench, contenders, o.large_pages) && alone;
  });
  if (o.check) return same ? 0 : 1;
  if (o.large_pages) {
    // Before anything touches it: scratch keeps its region.
    auto* all = bench.scratch.take<std::byte>(size_t{96} << 20);
    const auto at = (reinterpret_cast<uintptr_t>(all) + 4095) / 4096 * 4096;
    static_cast<void>(madvise(reinterpret_cast<void*>(at), size_t{95} << 20, MADV_HUGEPAGE));
    bench.scratch.reset();
  }
  if (contenders.size() > 2 && o.only.empty()) contenders.erase(contenders.begin() + 1);  // it was there for its bits
  std::vector<Stack> stacks;
  for (DType dtype : {DType::i4, DType::i8, DType::bf16})
    if (listed(o.formats, name_of(dtype))) stacks.emplace_back(dtype, o.rows, o.large_pages);
  const cpu::Ceilings before = ceilings_of(best, o.threads);
  std::vector<Times> times(stacks.size(), Times(contenders.size()));
  {
    const ThreadPool::Lease lease(ThreadPool::shared(), o.threads, true);
    for (Stack& stack : stacks)  // scratch grows
      for (const Contender& c : contenders)
        for (auto& product : stack.layers[0]) bench.run(c.kernel, Step{}, (*product)());
    const auto start = Clock::now();
    for (size_t round = 0; round < 1 || since(start) < o.seconds; ++round)
      for (size_t i = 0; i < stacks.size(); ++i) one_round(bench, stacks[i], contenders, round * 7, times[i]);
  }
  const cpu::Ceilings after = ceilings_of(best, o.threads);
  for (size_t i = 0; i < stacks.size(); ++i) {
    const double most = std::max(peak(before, stacks[i].dtype), peak(after, stacks[i].dtype));
    report(stacks[i], contenders, times[i], o.rows, most);
  }
  return same ? 0 : 1;
}

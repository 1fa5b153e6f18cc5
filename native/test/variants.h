// Builds of one kernel, timed in turns: what prefill_bench and attention_bench share. variants.sh builds both.
//
// INGOT_KERNEL is the kernel. INGOT_VARIANTS, a list of V(name, exact), adds builds of the same sources with other
// constants; `exact` is 0 where something is left out, so that the bits differ. Machines that have INGOT_VARIANTS_SET, an
// instruction set, run them.
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "kernels.h"

#if !defined(INGOT_VARIANTS)
#define INGOT_VARIANTS
#endif
#define V(name, exact) namespace ingot::cpu::name { void INGOT_KERNEL(const Context&, const Call&); }
INGOT_VARIANTS
#undef V

namespace ingot::test {

using Clock = std::chrono::steady_clock;
inline double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

struct Contender { std::string name; Kernel kernel; bool exact; };

inline bool listed(const std::string& list, const std::string& name) {
  return ("," + list + ",").find("," + name + ",") != std::string::npos;
}

// The best instruction set of the machine.
inline const cpu::InstructionSet& best_set() {
  for (const cpu::InstructionSet& set : cpu::instruction_sets())
    if (set.table) return set;
  std::abort();
}

// The best instruction set's kernel, then its variants; the next set's too, where nothing else would hold its bits. Of
// these, those in `only`, unless it is empty.
inline std::vector<Contender> contenders_of(uint16_t opcode, const std::string& only) {
  std::vector<Contender> all;
  bool runs = false;
  for (const cpu::InstructionSet& set : cpu::instruction_sets()) {
    if (!set.table) continue;
    if (all.size() < 2) all.push_back({set.name, set.table->kernels[opcode], true});
    runs |= !std::strcmp(set.name, INGOT_VARIANTS_SET);
  }
  if (runs) {
#define V(name, exact) all.push_back({#name, cpu::name::INGOT_KERNEL, exact});
    INGOT_VARIANTS
#undef V
  }
  std::vector<Contender> chosen;
  for (const Contender& c : all)
    if (only.empty() || listed(only, c.name)) chosen.push_back(c);
  if (chosen.empty()) std::fprintf(stderr, "nothing of the name %s\n", only.c_str()), std::exit(2);
  return chosen;
}

// Zeroed, aligned to 2 MB, on pages of the size asked for, as far as the system has them; lives as long as the process.
inline std::byte* pages(size_t bytes, bool large) {
  constexpr size_t kLarge = size_t{2} << 20;
  const size_t size = (bytes + kLarge - 1) / kLarge * kLarge + kLarge;
  void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) std::perror("mmap"), std::exit(1);
  const auto at = (reinterpret_cast<uintptr_t>(data) + kLarge - 1) / kLarge * kLarge;
  static_cast<void>(madvise(reinterpret_cast<void*>(at), size - kLarge, large ? MADV_HUGEPAGE : MADV_NOHUGEPAGE));
  return reinterpret_cast<std::byte*>(at);
}

struct Fast {
  uint64_t state = 88172645463325252u;
  uint64_t operator()() { return state ^= state << 13, state ^= state >> 7, state ^= state << 17; }
  double uniform() { return double((*this)() >> 11) * 0x1p-53; }
};

// f32 rows of a register as an arena holds them, with random values where `random` is given.
struct Rows {
  Matrix matrix;
  Rows(size_t rows, uint32_t width, Fast* random) {
    const size_t stride = (size_t{width} * 4 + 63) / 64 * 64;
    matrix = {pages(rows * stride, false), stride, uint32_t(rows), width, DType::f32};
    for (size_t r = 0; random && r < rows; ++r)
      for (size_t c = 0; c < width; ++c) matrix.row<float>(r)[c] = float(random->uniform() + random->uniform() - 1);
  }
};

inline uint64_t digest(const Matrix& m) {
  uint64_t hash = 1469598103934665603u;
  for (size_t r = 0; r < m.rows; ++r)
    for (size_t c = 0; c < m.width; ++c) hash = (hash ^ m.row<uint32_t>(r)[c]) * 1099511628211u;
  return hash;
}

struct Bench {
  Scratch scratch;

  // Seconds of one call on the lease that is held.
  double run(Kernel kernel, const Step& step, const Call& call) {
    const auto start = Clock::now();
    kernel({step, ThreadPool::shared(), scratch}, call);
    const double taken = since(start);
    scratch.reset();
    return taken;
  }
};

inline double quantile(std::vector<double> v, double q) {
  std::sort(v.begin(), v.end());
  return v.empty() ? 0 : v[size_t(q * double(v.size() - 1))];
}
inline double median(std::vector<double> v) { return quantile(std::move(v), 0.5); }

inline cpu::Ceilings ceilings_of(const cpu::InstructionSet& set, unsigned threads) {
  cpu::Ceilings ceilings;
  if (cpu::measure_ceilings(set, threads, ceilings)) std::fprintf(stderr, "no memory for ceilings\n"), std::exit(1);
  return ceilings;
}
// The most that measurements whose names start with `name` reached, in their unit.
inline double ceiling(const cpu::Ceilings& ceilings, const std::string& name) {
  double best = 0;
  for (const cpu::Measurement& m : ceilings.measurements)
    if (std::string(m.name).starts_with(name)) best = std::max(best, median(m.samples));
  return best;
}

// Options of both benches.
struct VariantOptions {
  double seconds = 0;
  unsigned threads = 2;
  std::string only;
  bool large_pages = false, check = false;
};
// Reads a command line; own(option, value) takes those of one bench, and returns whether it knows them. value() is the
// option's.
template <class F>
void parse(int argc, char** argv, VariantOptions& o, const F& own) {
  const auto refuse = [&](const char* what, const char* option) {
    std::fprintf(stderr, "%s: %s %s\n", argv[0], what, option), std::exit(2);
  };
  for (int i = 1; i < argc; ++i) {
    const std::string a = argv[i];
    const auto value = [&] {
      if (i + 1 == argc) refuse("no value after", argv[i]);
      return static_cast<const char*>(argv[++i]);
    };
    if (a == "--seconds") o.seconds = std::atof(value());
    else if (a == "--threads") o.threads = unsigned(std::atoi(value()));
    else if (a == "--only") o.only = value();
    else if (a == "--large-pages") o.large_pages = true;
    else if (a == "--check") o.check = true;
    else if (!own(a, value)) refuse("unknown option", argv[i]);
  }
  if (!o.threads) refuse("at least 1 is wanted for", "--threads");
}

// Says what runs where, and whether all give the same bits, which `same()` checks on scratch full of NaN.
template <class F>
bool check_bits(Bench& bench, unsigned threads, const F& same) {
  std::printf("%s, %s, %u threads\n", cpu::cpu_info().name.c_str(), best_set().name, threads);
  const ThreadPool::Lease lease(ThreadPool::shared(), threads, true);
  bench.scratch.set_noisy(true);
  const bool agree = same();
  bench.scratch.set_noisy(false);
  std::printf("bits: %s\n", agree ? "all the same" : "DIFFER");
  std::fflush(stdout);
  return agree;
}

}  // namespace ingot::test

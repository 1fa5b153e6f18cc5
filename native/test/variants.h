// Builds of one kernel, timed in turns: what prefill_bench and attention_bench share. variants.sh builds both.
//
// INGOT_KERNEL is the kernel. INGOT_VARIANTS, a list of V(name, exact), adds builds of the same sources with other
// constants; `exact` is 0 where something is left out, so that the bits differ.
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

// Variants are of AMX; those over tiles in software run anywhere.
#if defined(INGOT_VARIANTS_EMULATED)
inline constexpr bool kRunsVariants = true;
#else
inline constexpr bool kRunsVariants = false;
#endif

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
  for (const cpu::InstructionSet& set : cpu::instruction_sets())
    if (set.table && all.size() < 2) all.push_back({set.name, set.table->kernels[opcode], true});
  if (kRunsVariants || all[0].name == "amx") {
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

// Value of the option argv[i], past which i moves.
inline const char* value_of(int argc, char** argv, int& i) {
  if (i + 1 == argc) std::fprintf(stderr, "%s: %s wants a value\n", argv[0], argv[i]), std::exit(2);
  return argv[++i];
}

}  // namespace ingot::test

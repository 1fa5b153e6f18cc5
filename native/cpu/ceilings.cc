// How fast the loops of probe.cc run on the shared pool. Compiled once; what it times is compiled per instruction set.
#include <algorithm>
#include <chrono>
#include <cstring>

#include "../core/memory.h"
#include "../core/thread_pool.h"
#include "cpu.h"

namespace ingot::cpu {
namespace {

// Windows are short, so that most of them meet no other process, and many, so that their median does not.
constexpr int kWindows = 11;
constexpr double kWindowSeconds = 4e-3;
constexpr size_t kLeastReadBytes = size_t{1} << 28, kReadWindow = size_t{1} << 27;
constexpr size_t kReadGrain = 8192;

// body(thread) on each thread of the lease; seconds until all are done.
template <class Body>
double timed(ThreadPool& pool, const Body& body) {
  const auto start = std::chrono::steady_clock::now();
  pool.parallel(pool.threads(), 1, [&](size_t begin, size_t end) {
    for (size_t thread = begin; thread < end; ++thread) body(thread);
  });
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Each window reads the part of the buffer after that of the last, so that it finds nothing of its own in a cache.
Measurement measure_read(const char* name, unsigned threads, const Region& buffer,
                         void (*read)(const std::byte*, size_t)) {
  ThreadPool& pool = ThreadPool::shared();
  const ThreadPool::Lease lease(pool, threads);
  const size_t share = kReadWindow / pool.threads() / kReadGrain * kReadGrain, window = share * pool.threads();
  Measurement result{name, {}};
  size_t at = 0;
  for (int i = -1; i < kWindows; ++i, at += window) {  // the first wakes the threads
    if (at + window > buffer.size()) at = 0;
    const double seconds = timed(pool, [&](size_t thread) { read(buffer.data() + at + thread * share, share); });
    if (i >= 0) result.samples.push_back(double(window) / seconds * 1e-9);
  }
  return result;
}

Measurement measure_peak(const PeakProbe& probe, unsigned threads) {
  ThreadPool& pool = ThreadPool::shared();
  const ThreadPool::Lease lease(pool, threads);
  size_t rounds = 1024;
  const auto window = [&] { return timed(pool, [&](size_t) { probe.run(rounds); }); };
  while (window() < kWindowSeconds) rounds *= 2;
  Measurement result{probe.name, {}};
  for (int i = 0; i < kWindows; ++i)
    result.samples.push_back(probe.operations * double(rounds) * pool.threads() / window() * 1e-9);
  return result;
}

// A buffer of real pages: untouched ones would all be the one page of zeros.
Fault read_buffer(unsigned threads, size_t most, Region& out) {
  const size_t spare = available_memory() / 4;
  const size_t bytes = std::min(std::max(most, kLeastReadBytes), spare) / kReadWindow * kReadWindow;
  if (bytes < kLeastReadBytes)
    return out_of_memory("the probe of the read bandwidth", double(kLeastReadBytes), double(spare));
  if (Fault fault = Region::allocate("the probe of the read bandwidth", bytes, out)) return fault;
  ThreadPool& pool = ThreadPool::shared();
  const ThreadPool::Lease lease(pool, threads);
  pool.parallel(bytes, kReadGrain, [&](size_t begin, size_t end) { std::memset(out.data() + begin, 1, end - begin); });
  return {};
}

}  // namespace

Fault measure_ceilings(const InstructionSet& set, unsigned threads, Ceilings& out, size_t read_bytes) {
  Region buffer;
  if (Fault fault = read_buffer(threads, read_bytes, buffer)) return fault;
  const ProbeTable& probes = *set.probes;
  out = {buffer.size(), {}};
  out.measurements.push_back(measure_read("read", threads, buffer, probes.read));
  out.measurements.push_back(measure_read("read_far", threads, buffer, probes.read_far));
  out.measurements.push_back(measure_read("read_plain", threads, buffer, probes.read_plain));
  for (const PeakProbe* probe = probes.peaks; probe->name; ++probe)
    out.measurements.push_back(measure_peak(*probe, threads));
  return {};
}

}  // namespace ingot::cpu

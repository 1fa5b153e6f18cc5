// What a machine can do at most with one instruction set: loops that do nothing else (probe.cc, compiled once per
// instruction set) and how fast they run (ceilings.cc).
#pragma once
#include <cstddef>
#include <string>
#include <vector>

#include "../core/status.h"

namespace ingot::cpu {

struct InstructionSet;

// A loop over registers only; `rounds` rounds of `operations` operations each, a multiply-add being two.
struct PeakProbe {
  const char* name;
  double operations;
  void (*run)(size_t rounds);
};

struct ProbeTable {
  // Read `bytes`, a multiple of 8192, once: as two streams prefetched into L1, or farther ahead into L2 too, and as one
  // plain loop.
  void (*read)(const std::byte* data, size_t bytes);
  void (*read_far)(const std::byte* data, size_t bytes);
  void (*read_plain)(const std::byte* data, size_t bytes);
  PeakProbe peaks[6];  // ends with one that has no name
};

struct Measurement {
  const char* name;             // "read", "read_far", "read_plain" or that of a PeakProbe
  std::vector<double> samples;  // GB/s of a read, GOP/s of the rest: one a window of some milliseconds
};

struct Ceilings {
  size_t bytes;  // of the buffer that is read: far more than caches hold
  std::vector<Measurement> measurements;
};

inline constexpr size_t kReadBytes = size_t{1} << 30;

// Measures every loop of `set` on `threads` threads of the shared pool; takes about a second, and the pool's turn for
// one loop at a time. Reads a buffer of `read_bytes` at most. Fault OUT_OF_MEMORY when too little is free for a buffer that
// caches do not hold.
Fault measure_ceilings(const InstructionSet& set, unsigned threads, Ceilings& out, size_t read_bytes = kReadBytes);

}  // namespace ingot::cpu

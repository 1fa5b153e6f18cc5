// The CPU backend: one kernel table per instruction set, chosen when a model is opened.
#pragma once
#include <span>
#include <string>

#include "../core/kernel.h"
#include "pack.h"
#include "probe.h"

namespace ingot::cpu {

struct InstructionSet {
  const char* name;            // "avx512_vnni"
  const KernelTable* table;    // nullptr: not available on this machine
  const ProbeTable* probes;    // nullptr likewise
  PackTile pack_tile;          // nullptr likewise
  const char* missing;         // why not: "the CPU has no amx_bf16"
};

// Every instruction set of the build, best first. The portable one is always available.
std::span<const InstructionSet> instruction_sets();

struct CpuInfo {
  std::string name;            // "AMD EPYC 9965"
  unsigned physical_cores;     // that this process may run on
  std::span<const char* const> features;
};
const CpuInfo& cpu_info();

}  // namespace ingot::cpu

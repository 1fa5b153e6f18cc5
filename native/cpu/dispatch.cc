// Which instruction sets this machine runs. Compiled once, for the least machine.
#include <fstream>
#include <set>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "../core/processors.h"
#include "cpu.h"

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace ingot::cpu {

#define INGOT_DECLARE(isa)                             \
  namespace isa {                                      \
  extern const KernelTable table;                      \
  extern const ProbeTable probes;                      \
  std::remove_pointer_t<PackTile> pack_tile;           \
  }
INGOT_DECLARE(portable)
INGOT_DECLARE(avx2)
INGOT_DECLARE(avx2_vnni)
INGOT_DECLARE(avx512)
INGOT_DECLARE(avx512_vnni)
INGOT_DECLARE(amx)
#undef INGOT_DECLARE

namespace {

#if defined(__x86_64__)
struct Feature { const char* name; uint32_t leaf, subleaf; int reg, bit; uint64_t state; };

// State components the operating system must save (Intel SDM volume 1, 13.1): AVX, AVX-512, AMX.
constexpr uint64_t kAvxState = 0x6, kAvx512State = 0xe6, kAmxState = 0x60000;
enum { eax, ebx, ecx, edx };
constexpr Feature kFeatures[] = {
    {"fma", 1, 0, ecx, 12, kAvxState},
    {"f16c", 1, 0, ecx, 29, kAvxState},
    {"avx2", 7, 0, ebx, 5, kAvxState},
    {"avx512f", 7, 0, ebx, 16, kAvx512State},
    {"avx512dq", 7, 0, ebx, 17, kAvx512State},
    {"avx512bw", 7, 0, ebx, 30, kAvx512State},
    {"avx512vl", 7, 0, ebx, 31, kAvx512State},
    {"avx_vnni", 7, 1, eax, 4, kAvxState},
    {"avx512_vnni", 7, 0, ecx, 11, kAvx512State},
    {"avx512_bf16", 7, 1, eax, 5, kAvx512State},
    {"amx_bf16", 7, 0, edx, 22, kAmxState},
    {"amx_tile", 7, 0, edx, 24, kAmxState},
    {"amx_int8", 7, 0, edx, 25, kAmxState},
};

uint64_t enabled_states() {
  uint32_t r[4];
  if (!__get_cpuid(1, &r[eax], &r[ebx], &r[ecx], &r[edx]) || !(r[ecx] >> 27 & 1)) return 0;  // OSXSAVE
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t(high) << 32 | low;
}

// Linux gives tile registers to a process that asks (arch_prctl(2), ARCH_REQ_XCOMP_PERM of XFEATURE_XTILEDATA).
bool tiles_permitted() {
#if defined(__linux__)
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return false;
#endif
}

struct Detected {
  std::vector<const char*> present;
  bool tiles_refused = false;

  Detected() {
    const uint64_t states = enabled_states();
    for (const Feature& f : kFeatures) {
      uint32_t r[4];
      const bool known = __get_cpuid_count(f.leaf, f.subleaf, &r[eax], &r[ebx], &r[ecx], &r[edx]);
      if (known && r[f.reg] >> f.bit & 1 && (states & f.state) == f.state) present.push_back(f.name);
    }
    if (has("amx_tile") && !tiles_permitted()) tiles_refused = true;
  }
  bool has(std::string_view name) const {
    for (const char* p : present) if (name == p) return true;
    return false;
  }
};
const Detected& detected() {
  static const Detected d;
  return d;
}

// The first of the names that the machine lacks, as a reason.
const char* missing(std::initializer_list<const char*> names) {
  static std::set<std::string> reasons;  // called under the initialisation of instruction_sets() only
  for (const char* name : names) {
    if (!detected().has(name)) {
      return reasons.insert(std::string("the CPU or the operating system does not offer ") + name).first->c_str();
    }
  }
  return nullptr;
}
#endif

std::vector<InstructionSet> detect() {
  std::vector<InstructionSet> sets;
#if INGOT_HAS_avx2
  const auto add = [&](const char* name, const KernelTable& table, const ProbeTable& probes, PackTile pack_tile,
                       const char* reason) {
    if (reason) sets.push_back({name, nullptr, nullptr, nullptr, reason});
    else sets.push_back({name, &table, &probes, pack_tile, nullptr});
  };
  const char* avx2 = missing({"avx2", "fma", "f16c"});
  const char* avx2_vnni = avx2 ? avx2 : missing({"avx_vnni"});
  const char* avx512 = avx2 ? avx2 : missing({"avx512f", "avx512bw", "avx512dq", "avx512vl"});
  const char* vnni = avx512 ? avx512 : missing({"avx512_vnni"});
  const char* amx = vnni ? vnni : missing({"avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"});
  if (!amx && detected().tiles_refused) amx = "the operating system does not permit AMX tiles to this process";
  // What a build leaves out (CMakeLists.txt) is not listed.
#define INGOT_ADD(isa, reason) \
  if constexpr (INGOT_HAS_##isa) add(#isa, isa::table, isa::probes, isa::pack_tile, reason)
  INGOT_ADD(amx, amx);
  INGOT_ADD(avx512_vnni, vnni);
  INGOT_ADD(avx512, avx512);
  INGOT_ADD(avx2_vnni, avx2_vnni);
  INGOT_ADD(avx2, avx2);
#undef INGOT_ADD
#endif
  sets.push_back({"portable", &portable::table, &portable::probes, portable::pack_tile, nullptr});
  return sets;
}

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown CPU";
}

}  // namespace

std::span<const InstructionSet> instruction_sets() {
  static const std::vector<InstructionSet> sets = detect();
  return sets;
}

const CpuInfo& cpu_info() {
#if defined(__x86_64__)
  static const CpuInfo info{cpu_name(), processors().threads(), detected().present};
#else
  static const CpuInfo info{cpu_name(), processors().threads(), {}};
#endif
  return info;
}

}  // namespace ingot::cpu

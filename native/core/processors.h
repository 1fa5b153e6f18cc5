// The processors that this process may use, and threads held to them.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace ingot {

// One physical core: the processors of it (siblings) that the process may use.
using Core = std::vector<int>;

struct Processors {
  std::vector<Core> cores;  // in the order of their first processor; empty where the system does not tell
  double quota = 0;         // processors' worth of time that the control groups allow; 0: no limit

  // Threads that can compute at once, at least 1: cores, or what the quota pays for when that is less.
  unsigned threads() const;
};

// As it was when first asked.
const Processors& processors();

// Processors' worth of time that a control group allows, from its cpu.max ("max 100000", "150000 100000"); 0: no limit.
double parse_quota(const std::string& cpu_max);

enum class Pin : uint8_t { automatic, always, never };

// Whether the threads of a step are each held to a core of their own, and why, for people.
struct Pinning {
  bool pinned;
  std::string reason;
};
// Automatic pins when the threads fill all cores: where cores are left over, another process may need the same ones.
Pinning pinning(Pin pin, unsigned threads, const Processors& where = processors());

// Holds the calling thread to core `index` of processors(), or lets it go. False where the system refuses.
bool hold_to_core(unsigned index);
bool let_go();

}  // namespace ingot

#include "processors.h"

#include <algorithm>
#include <fstream>
#include <map>
#include <sstream>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace ingot {
namespace {

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

#if defined(__linux__)
// A set of processors as the system takes it, of whatever size it needs.
class Mask {
 public:
  explicit Mask(size_t cpus) : cpus_(cpus), set_(CPU_ALLOC(cpus)) { CPU_ZERO_S(bytes(), set_); }
  ~Mask() { CPU_FREE(set_); }
  Mask(const Mask&) = delete;
  Mask& operator=(const Mask&) = delete;
  size_t bytes() const { return CPU_ALLOC_SIZE(cpus_); }
  size_t cpus() const { return cpus_; }
  bool has(size_t cpu) const { return CPU_ISSET_S(cpu, bytes(), set_); }
  void add(size_t cpu) { CPU_SET_S(cpu, bytes(), set_); }
  bool read() { return sched_getaffinity(0, bytes(), set_) == 0; }
  bool apply() const { return sched_setaffinity(0, bytes(), set_) == 0; }

 private:
  size_t cpus_;
  cpu_set_t* set_;
};

std::vector<Core> find_cores() {
  // EINVAL until the mask holds every CPU of the machine.
  for (size_t cpus = 1024; cpus <= size_t{1} << 20; cpus *= 2) {
    Mask mask(cpus);
    if (!mask.read()) continue;
    std::map<std::string, size_t> known;  // siblings to core
    std::vector<Core> cores;
    for (size_t cpu = 0; cpu < cpus; ++cpu) {
      if (!mask.has(cpu)) continue;
      const std::string folder = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
      std::string siblings = first_line(folder + "thread_siblings_list");
      if (siblings.empty()) siblings = std::to_string(cpu);
      const auto [core, is_new] = known.try_emplace(siblings, cores.size());
      if (is_new) cores.emplace_back();
      cores[core->second].push_back(int(cpu));
    }
    return cores;
  }
  return {};
}

// The least that the process's control group and its ancestors allow; both cgroup versions.
double find_quota() {
  double least = 0;
  const auto take = [&](double quota) {
    if (quota > 0 && (least == 0 || quota < least)) least = quota;
  };
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    std::string controllers = line.substr(first, second - first);
    controllers.front() = ',';
    const bool unified = controllers == ",";
    controllers += ',';
    if (!unified && controllers.find(",cpu,") == std::string::npos) continue;
    const std::string root = unified ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu";
    for (std::string group = line.substr(second + 1);;) {
      if (group == "/") group.clear();
      const std::string folder = root + group + "/";
      take(parse_quota(unified ? first_line(folder + "cpu.max")
                               : first_line(folder + "cpu.cfs_quota_us") + " " +
                                     first_line(folder + "cpu.cfs_period_us")));
      if (group.empty()) break;
      const size_t slash = group.rfind('/');
      group.resize(slash == std::string::npos ? 0 : slash);
    }
  }
  return least;
}

bool apply(const std::vector<Core>& cores) {
  int last = 0;
  for (const Core& core : cores) for (const int cpu : core) last = std::max(last, cpu);
  Mask mask(std::max<size_t>(1024, size_t(last) + 1));
  for (const Core& core : cores) for (const int cpu : core) mask.add(size_t(cpu));
  return !cores.empty() && mask.apply();
}
#else
std::vector<Core> find_cores() { return {}; }
double find_quota() { return 0; }
bool apply(const std::vector<Core>&) { return false; }
#endif

}  // namespace

unsigned Processors::threads() const {
  const unsigned hardware = std::max(1u, std::thread::hardware_concurrency());
  const unsigned count = cores.empty() ? hardware : unsigned(cores.size());
  // Rounded down: a thread beyond the quota would be stopped in the middle of steps, and the others wait for it.
  return quota > 0 ? std::clamp(unsigned(std::min(quota, double(count))), 1u, count) : count;
}

const Processors& processors() {
  // Never destroyed: threads of the pool read it until the process ends.
  static const Processors* const found = new Processors{find_cores(), find_quota()};
  return *found;
}

double parse_quota(const std::string& cpu_max) {
  std::istringstream words(cpu_max);
  double quota = 0, period = 0;
  return words >> quota >> period && quota > 0 && period > 0 ? quota / period : 0;
}

Pinning pinning(Pin pin, unsigned threads, const Processors& where) {
  const size_t cores = where.cores.size();
  const std::string counts = std::to_string(threads) + " threads, " + std::to_string(cores) + " cores";
  if (pin == Pin::never) return {false, "not asked for"};
  if (cores == 0) return {false, "the system does not tell which cores the process may use"};
  if (threads > cores) return {false, "more threads than cores: " + counts};
  if (threads == 1 && pin == Pin::automatic) return {false, "one thread"};
  if (threads < cores && pin == Pin::automatic) return {false, "the system has cores to choose from: " + counts};
  return {true, "a core for each thread: " + counts};
}

bool hold_to_core(unsigned index) {
  const std::vector<Core>& cores = processors().cores;
  return index < cores.size() && apply({cores[index]});
}

bool let_go() { return apply(processors().cores); }

}  // namespace ingot

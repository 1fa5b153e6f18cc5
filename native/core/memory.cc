#include "memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <limits>
#include <system_error>

namespace ingot {
namespace {

constexpr uint64_t kUnlimited = std::numeric_limits<uint64_t>::max();
// Below this, asking the system costs more than the answer is worth.
constexpr size_t kUncheckedBytes = size_t{1} << 20;

// First number of a file, or kUnlimited: missing, unreadable or "max".
uint64_t read_number(const std::string& path) {
  std::ifstream file(path);
  uint64_t value = kUnlimited;
  return file >> value ? value : kUnlimited;
}

// The number that follows `key` in a file of "key value" lines, or `otherwise`.
uint64_t read_field(const std::string& path, std::string_view key, uint64_t otherwise) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(key)) continue;
    const size_t digit = line.find_first_of("0123456789", key.size());
    uint64_t value = otherwise;
    if (digit != std::string::npos) std::from_chars(line.data() + digit, line.data() + line.size(), value);
    return value;
  }
  return otherwise;
}

// What a control group still allows: its limit less its use, but for page cache, which the kernel gives back.
uint64_t group_available(const std::string& folder, const char* limit_file, const char* usage_file) {
  const uint64_t limit = read_number(folder + limit_file);
  const uint64_t usage = read_number(folder + usage_file);
  if (limit == kUnlimited || usage == kUnlimited) return kUnlimited;
  const std::string stat = folder + "/memory.stat";
  const uint64_t cache = read_field(stat, "active_file ", 0) + read_field(stat, "inactive_file ", 0);
  const uint64_t held = usage - std::min(usage, cache);
  return limit - std::min(limit, held);
}

// Least of what the process's control group and its ancestors allow; both cgroup versions.
uint64_t groups_available() {
  uint64_t available = kUnlimited;
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool unified = controllers.empty();
    if (!unified && controllers != "memory") continue;
    const std::string root = unified ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
    std::string group = line.substr(second + 1);
    for (;;) {
      if (group == "/") group.clear();
      available = std::min(available, unified ? group_available(root + group, "/memory.max", "/memory.current")
                                              : group_available(root + group, "/memory.limit_in_bytes",
                                                                "/memory.usage_in_bytes"));
      if (group.empty()) break;
      group.resize(group.rfind('/') == std::string::npos ? 0 : group.rfind('/'));
    }
  }
  return available;
}

size_t page_round(size_t bytes) {
  static const size_t page = size_t(sysconf(_SC_PAGESIZE));
  return (bytes + page - 1) / page * page;
}

Fault file_fault(const std::string& path, int error) {
  if (error == ENOENT) return {"FILE_MISSING", {{"path", path}, {"expected", "a readable file"}}};
  return {"FILE_UNREADABLE", {{"path", path}, {"reason", std::generic_category().message(error)}}};
}

}  // namespace

uint64_t available_memory() {
  const uint64_t kilobytes = read_field("/proc/meminfo", "MemAvailable:", kUnlimited);
  return std::min(kilobytes == kUnlimited ? kUnlimited : kilobytes * 1024, groups_available());
}

Fault out_of_memory(const std::string& thing, double needed, double available) {
  return {"OUT_OF_MEMORY", {{"thing", thing}, {"needed", needed}, {"available", available}}};
}

void unmap(std::byte* data, size_t size) { munmap(data, size); }

void poison(std::span<std::byte> bytes) {
  std::fill_n(reinterpret_cast<uint32_t*>(bytes.data()), bytes.size() / sizeof kPoison, kPoison);
}

Fault Region::allocate(const char* thing, size_t bytes, Region& out, bool fits) {
  out.release();
  if (bytes == 0) return {};
  if (!fits && bytes > kUncheckedBytes) {
    const uint64_t available = available_memory();
    if (bytes > available) return out_of_memory(thing, double(bytes), double(available));
  }
  const size_t size = page_round(bytes);
  // NORESERVE: capacity is promised above, and committed page by page as a step first touches it.
  void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) return out_of_memory(thing, double(bytes), double(available_memory()));
  out.take(data, size);
  return {};
}

Fault MappedFile::open(const std::string& path, bool writable, MappedFile& out) {
  out.release();
  // NONBLOCK: opening a pipe that nobody writes must fail below, not wait here.
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) return file_fault(path, errno);
  struct stat info;
  int error = fstat(file, &info) == 0 ? 0 : errno;
  if (!error && !S_ISREG(info.st_mode)) error = S_ISDIR(info.st_mode) ? EISDIR : EINVAL;
  if (!error && info.st_size > 0) {
    void* data = mmap(nullptr, size_t(info.st_size), PROT_READ | (writable ? PROT_WRITE : 0),
                      MAP_PRIVATE | (writable ? MAP_NORESERVE : 0), file, 0);
    if (data == MAP_FAILED) {
      error = errno;
    } else {
      out.take(data, size_t(info.st_size));
#if defined(MADV_HUGEPAGE)
      // Read from the disk, the file then lies in the page cache in large pieces, which this and later processes map in
      // few faults. Where the kernel cannot, nothing changes.
      static_cast<void>(madvise(data, out.size(), MADV_HUGEPAGE));
#endif
    }
  }
  close(file);
  return error ? file_fault(path, error) : Fault{};
}

}  // namespace ingot

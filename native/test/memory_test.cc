#include "../core/memory.h"

#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <new>
#include <string>
#include <utility>

#include "../core/scratch.h"
#include "check.h"

using namespace ingot;

namespace {

size_t resident_bytes() {
  size_t pages = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> pages >> resident;
  return resident * size_t(sysconf(_SC_PAGESIZE));
}

std::string detail(const Fault& fault, const char* name) {
  for (const auto& [key, value] : fault.details)
    if (key == name) return std::holds_alternative<std::string>(value) ? std::get<std::string>(value) : "number";
  return "";
}

void commits_lazily() {
  const uint64_t available = available_memory();
  CHECK(available > 0 && available != UINT64_MAX);
  const size_t bytes = size_t(available / 2);
  const size_t before = resident_bytes();
  Region region;
  CHECK(!Region::allocate("test", bytes, region));
  CHECK(region.size() >= bytes);
  CHECK(resident_bytes() < before + bytes / 10 + (64 << 20));
  CHECK(region.data()[0] == std::byte{0} && region.data()[bytes - 1] == std::byte{0});
  region.data()[bytes - 1] = std::byte{1};

  Region moved = std::move(region);
  CHECK(!region.data() && moved.data()[bytes - 1] == std::byte{1});
  moved.release();
  CHECK(!moved.data() && moved.size() == 0);
}

void refuses_what_the_machine_lacks() {
  Region region;
  for (size_t bytes : {size_t{1} << 50, SIZE_MAX - 5000}) {
    const Fault fault = Region::allocate("the cache", bytes, region);
    CHECK(fault.code == "OUT_OF_MEMORY" && detail(fault, "thing") == "the cache");
    CHECK(detail(fault, "needed") == "number" && detail(fault, "available") == "number");
    CHECK(!region.data());
  }
  CHECK(!Region::allocate("nothing", 0, region));
  CHECK(!region.data());
}

void maps_files() {
  char path[] = "/tmp/ingot_memory_test_XXXXXX";
  const int file = mkstemp(path);
  CHECK(file >= 0 && write(file, "ingot", 5) == 5);
  close(file);
  MappedFile mapped, again;
  CHECK(!MappedFile::open(path, true, mapped));
  CHECK(mapped.size() == 5 && std::memcmp(mapped.data(), "ingot", 5) == 0);
  mapped.data()[0] = std::byte{'X'};
  CHECK(!MappedFile::open(path, false, again));
  CHECK(again.data()[0] == std::byte{'i'});  // writes stay private
  MappedFile moved = std::move(again);
  CHECK(!again.data() && moved.size() == 5);

  CHECK(truncate(path, 0) == 0);
  CHECK(!MappedFile::open(path, false, again));
  CHECK(!again.data() && again.size() == 0);
  unlink(path);
  CHECK(MappedFile::open(path, false, again).code == "FILE_MISSING");
  CHECK(MappedFile::open("/tmp", false, again).code == "FILE_UNREADABLE");
  CHECK(MappedFile::open("/dev/null", false, again).code == "FILE_UNREADABLE");
}

void scratch_grows_and_stays() {
  Scratch scratch;
  for (int round = 0; round < 3; ++round) {
    scratch.reset();
    char* a = scratch.take<char>(100);
    float* b = scratch.take<float>(100000);
    CHECK(reinterpret_cast<uintptr_t>(a) % 64 == 0 && reinterpret_cast<uintptr_t>(b) % 64 == 0);
    std::memset(a, 1, 100);
    std::memset(b, 2, 400000);
    CHECK(a[99] == 1);
    CHECK(scratch.wanted() == 128 + 400000);
  }
  const size_t high = scratch.bytes();
  CHECK(high >= 400128 && high < 2 * 400128);
  for (int round = 0; round < 100; ++round) {
    scratch.reset();
    CHECK(scratch.take<char>(400000) == scratch.take<char>(0) - 400000);
    CHECK(scratch.bytes() == high);
  }
  bool refused = false;
  try {
    scratch.reset();
    scratch.take<char>(size_t{1} << 50);
  } catch (const std::bad_alloc&) {
    refused = true;
  }
  CHECK(refused && scratch.wanted() == size_t{1} << 50);
  scratch.reset();
  CHECK(scratch.take<char>(64) != nullptr);
}

}  // namespace

int main() {
  commits_lazily();
  refuses_what_the_machine_lacks();
  maps_files();
  scratch_grows_and_stays();
}

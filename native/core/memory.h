// Anonymous and file-backed memory, page-granular, released at once.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "owned.h"
#include "status.h"

namespace ingot {

// Bytes that this process may still take: what the machine and its control groups allow, whichever is less.
uint64_t available_memory();
Fault out_of_memory(const std::string& thing, double needed, double available);

// A signalling NaN as f32; NaN as either half in bf16 and f16.
inline constexpr uint32_t kPoison = 0x7fbf7fbf;
// Fills whole words with it, from the start of one.
void poison(std::span<std::byte> bytes);

void unmap(std::byte* data, size_t size);

// Anonymous pages, zero until first touched; committed lazily by the kernel.
class Region : public Owned<unmap> {
 public:
  // Fault OUT_OF_MEMORY, with `thing`, needed and available bytes, when the machine does not have them. `fits`: the
  // caller knows that it does; asking the system takes a third of a millisecond.
  static Fault allocate(const char* thing, size_t bytes, Region& out, bool fits = false);
};

// A whole file, mapped privately: writes never reach the file.
class MappedFile : public Owned<unmap> {
 public:
  static Fault open(const std::string& path, bool writable, MappedFile& out);
};

}  // namespace ingot

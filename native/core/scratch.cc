#include "scratch.h"

#include <cstdint>
#include <memory>
#include <new>
#include <utility>

namespace ingot {

// One allocation that did not fit; freed when the instruction ends.
struct Scratch::Overflow {
  Region region;
  Overflow* next;
};

Scratch::~Scratch() {
  while (overflow_) delete std::exchange(overflow_, overflow_->next);
}

std::byte* Scratch::take_bytes(size_t bytes) {
  if (bytes > SIZE_MAX / 2) throw std::bad_alloc();
  bytes = (bytes + 63) / 64 * 64;
  std::byte* taken = reserve(bytes);
  if (noisy_) poison({taken, bytes});
  return taken;
}

std::byte* Scratch::reserve(size_t bytes) {
  wanted_ += bytes;
  if (bytes <= region_.size() - used_) {
    std::byte* taken = region_.data() + used_;
    used_ += bytes;
    return taken;
  }
  auto chunk = std::make_unique<Overflow>();
  if (Region::allocate("scratch", bytes, chunk->region)) throw std::bad_alloc();
  chunk->next = overflow_;
  overflow_ = chunk.release();
  return overflow_->region.data();
}

void Scratch::reset() {
  if (overflow_) {
    while (overflow_) delete std::exchange(overflow_, overflow_->next);
    // A failure here is no fault: the next instruction that needs as much overflows again.
    static_cast<void>(Region::allocate("scratch", wanted_, region_));
  }
  used_ = wanted_ = 0;
}

size_t Scratch::bytes() const {
  size_t total = region_.size();
  for (const Overflow* chunk = overflow_; chunk; chunk = chunk->next) total += chunk->region.size();
  return total;
}

}  // namespace ingot

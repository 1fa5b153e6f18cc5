// Bytes with one owner, given back by `kFree(data, size)` when it goes or takes others.
#pragma once
#include <cstddef>
#include <utility>

namespace ingot {

template <void (*kFree)(std::byte*, size_t)>
class Owned {
 public:
  Owned() = default;
  ~Owned() { release(); }
  Owned(Owned&& other) noexcept { *this = std::move(other); }
  Owned& operator=(Owned&& other) noexcept {
    if (this != &other) take(std::exchange(other.data_, nullptr), std::exchange(other.size_, 0));
    return *this;
  }
  std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  void release() { take(nullptr, 0); }

 protected:
  void take(void* data, size_t size) {
    if (data_) kFree(data_, size_);
    data_ = static_cast<std::byte*>(data);
    size_ = size;
  }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace ingot

// Tiles of a weight, shared between threads. Compiled once.
#include <algorithm>
#include <array>
#include <atomic>
#include <exception>
#include <thread>
#include <vector>

#include "../core/thread_name.h"
#include "pack.h"

namespace ingot::cpu {

size_t Packing::scale_bytes() const {
  if (format == PackFormat::plain) return 0;
  return format == PackFormat::fp8 ? sizeof(float) : (cols + kQuantBlock - 1) / kQuantBlock * sizeof(uint16_t);
}

size_t pack_rows(const Packing& packing, std::span<const std::byte* const> rows, std::byte* tiles, std::byte* scales,
                 std::byte* sub_scales, unsigned threads, PackTile pack_tile) {
  const size_t count = (rows.size() + kTileRows - 1) / kTileRows;
  std::atomic<size_t> next{0}, refused{kNoRow};
  const auto work = [&] {
    for (size_t tile; (tile = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
      const size_t top = tile * kTileRows;
      std::array<const std::byte*, kTileRows> of{};
      std::copy_n(rows.begin() + ptrdiff_t(top), std::min(kTileRows, rows.size() - top), of.begin());
      const size_t bad = pack_tile(packing, of, tiles + tile * packing.tile_bytes(), scales + top * packing.scale_bytes(),
                                   sub_scales + top * packing.sub_scale_bytes());
      if (bad == kTileRows) continue;
      // Tiles are claimed in order: no row before it is left to look at but those in work.
      for (size_t first = refused; top + bad < first && !refused.compare_exchange_weak(first, top + bad);) {}
      return;
    }
  };
  std::vector<std::thread> helpers;
  const size_t wanted = std::min<size_t>(threads, count);
  try {
    helpers.reserve(wanted);
    while (helpers.size() + 1 < wanted)
      helpers.emplace_back([&] {
        enter_thread("ingot-pack");
        work();
      });
  } catch (const std::exception&) {  // as many as the system allows
  }
  work();
  for (std::thread& helper : helpers) helper.join();
  return refused;
}

}  // namespace ingot::cpu

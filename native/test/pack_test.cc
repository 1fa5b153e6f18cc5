// Tiles of weights: that no byte beside the rows is read or beside the tiles written, that every instruction set and number
// of threads gives the same bytes, and which row is refused. What the bytes are is compared in models/compile/tiles.test.ts.
#include "../cpu/pack.h"

#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "check.h"
#include "kernels.h"

using namespace ingot;
using namespace ingot::cpu;
using namespace ingot::test;

namespace {

// Rows each at an odd address, in memory of its own that ends where they end.
struct Source {
  std::vector<std::unique_ptr<std::byte[]>> memory;
  std::vector<const std::byte*> rows;

  std::byte* add(size_t bytes) {
    memory.push_back(std::make_unique<std::byte[]>(bytes + 1));
    rows.push_back(memory.back().get() + 1);
    return memory.back().get() + 1;
  }
};

Source random_rows(const Packing& packing, size_t rows, uint32_t seed) {
  Random random(seed);
  Source source;
  for (size_t row = 0; row < rows; ++row) {
    std::byte* to = source.add(packing.row_bytes());
    for (size_t c = 0; c < packing.cols; ++c) {
      const float x = random.below(8) ? float(random.normal() * 0.02) : 0.0f;
      uint32_t bits;
      std::memcpy(&bits, &x, sizeof bits);
      if (packing.from == DType::f32) std::memcpy(to + c * 4, &bits, 4);
      else if (packing.from == DType::i8) to[c] = std::byte(bits >> 16);
      else {
        const auto half = uint16_t(packing.from == DType::bf16 ? bits >> 16 : random.below(0x7c00));
        std::memcpy(to + c * 2, &half, 2);
      }
    }
  }
  return source;
}

struct Packed {
  std::vector<std::byte> tiles, scales, sub_scales;
  size_t refused;
  bool operator==(const Packed&) const = default;
};

Packed packed(const Packing& packing, const Source& source, unsigned threads, const InstructionSet& set) {
  const size_t rows = source.rows.size(), tiles = (rows + kTileRows - 1) / kTileRows;
  Packed out{std::vector<std::byte>(tiles * packing.tile_bytes(), std::byte{0xa5}),
             std::vector<std::byte>(rows * packing.scale_bytes(), std::byte{0xa5}),
             std::vector<std::byte>(rows * packing.sub_scale_bytes(), std::byte{0xa5}), kNoRow};
  out.refused = pack_rows(packing, source.rows, out.tiles.data(), out.scales.data(), out.sub_scales.data(), threads,
                          set.pack_tile);
  return out;
}

const Packing kPackings[] = {
    {PackFormat::q8, DType::f32, DType::i8, Layout::tile16x4, 0},
    {PackFormat::q8, DType::bf16, DType::i8, Layout::tile16x4, 0},
    {PackFormat::q4, DType::f16, DType::i4, Layout::tile16x8, 0},
    {PackFormat::q4, DType::bf16, DType::i4, Layout::tile16x8, 0},
    {PackFormat::fp8, DType::bf16, DType::e4m3, Layout::tile16x4, 0},
    {PackFormat::fp8, DType::f32, DType::e4m3, Layout::tile16x4, 0},
    {PackFormat::plain, DType::f32, DType::f32, Layout::tile16, 0},
    {PackFormat::plain, DType::f16, DType::f16, Layout::tile16, 0},
    {PackFormat::plain, DType::bf16, DType::bf16, Layout::tile16x2, 0},
    {PackFormat::plain, DType::i8, DType::i8, Layout::tile16, 0},
};

void same_everywhere() {
  const InstructionSet& portable = instruction_sets().back();
  for (Packing packing : kPackings)
    for (const size_t cols : {1u, 15u, 31u, 33u, 256u, 257u, 300u, 519u})
      for (const size_t rows : {1u, 16u, 37u}) {
        packing.cols = cols;
        const Source source = random_rows(packing, rows, uint32_t(cols * 41 + rows));
        const Packed expected = packed(packing, source, 1, portable);
        CHECK(expected.refused == kNoRow);
        for (const InstructionSet& set : instruction_sets())
          for (const unsigned threads : {1u, 3u})
            if (set.pack_tile) CHECK(packed(packing, source, threads, set) == expected);
      }
}

void refuses_the_first_row() {
  for (Packing packing : kPackings) {
    if (packing.from != DType::f32 || packing.format == PackFormat::plain) continue;
    packing.cols = 700;
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
      Source source = random_rows(packing, 200, 7);
      // The first row that holds one holds it last.
      for (const size_t at : {size_t{90} * 700 + 3, size_t{45} * 700 + 1, size_t{33} * 700 + 699})
        std::memcpy(const_cast<std::byte*>(source.rows[at / 700]) + at % 700 * 4, &bad, 4);
      for (const InstructionSet& set : instruction_sets())
        for (const unsigned threads : {1u, 4u})
          if (set.pack_tile) CHECK(packed(packing, source, threads, set).refused == 33);
    }
  }
}

void lies_as_the_layout_says() {
  Packing packing{PackFormat::q4, DType::f32, DType::i4, Layout::tile16x8, 8};
  Source source;
  const float row[8] = {-8, -7, -1, 0, 1, 2, 6, 7};  // times a sub-scale of 15 and a scale of 1 / 15, nearly
  for (size_t r = 0; r < 2; ++r) std::memcpy(source.add(sizeof row), row, sizeof row);
  const uint8_t expected[4] = {0x18, 0x29, 0x6f, 0x70};  // value i low, value i + 4 high
  const Packed out = packed(packing, source, 1, instruction_sets().back());
  CHECK(out.tiles.size() == 16 * 16 && out.sub_scales.size() == 2 && out.sub_scales[1] == std::byte{15});
  for (size_t r = 0; r < 2; ++r) CHECK(!std::memcmp(out.tiles.data() + r * 4, expected, 4));
  for (size_t i = 8; i < out.tiles.size(); ++i) CHECK(out.tiles[i] == std::byte{0});
}

}  // namespace

int main() {
  same_everywhere();
  refuses_the_first_row();
  lies_as_the_layout_says();
}

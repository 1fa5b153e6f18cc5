// One tile of a weight. Sixteen rows stand side by side in the lanes, and every lane does what models/compile/integers.ts
// and e4m3.ts do with one row, in float64 and in their order.
#include "pack.h"

#include <algorithm>
#include <array>

#include "simd.h"

namespace ingot::cpu::INGOT_ISA {
namespace {

static_assert(kTileRows == kLanes);

typedef double Wide __attribute__((vector_size(64 / kParts)));
typedef int64_t WideBits __attribute__((vector_size(64 / kParts)));
typedef float WideSource __attribute__((vector_size(32 / kParts)));
typedef int32_t WideInts __attribute__((vector_size(32 / kParts)));
constexpr size_t kWide = 8 / kParts;

// Adding and subtracting 1.5 * 2^52 rounds a small float64 to the nearest integer, ties to even.
constexpr double kRound = 0x1.8p52;
constexpr int kQ4SubScale = 15;
// What the element of largest magnitude is mapped to, tried in turn.
constexpr double kQ4Extremes[] = {-8, -6.5, -7, -7.5, -8.5, -9, -9.5, -10, -10.5};
constexpr uint32_t kMagnitude = 0x7fffffff;

using Rows = std::span<const std::byte* const, kTileRows>;
using Column = float[kLanes];
using Integers = int32_t[kLanes];

// Columns of a tile: up to 256 of 16 rows.
struct Block {
  alignas(64) Column x[kQuantBlock];
  alignas(64) Integers q[kQuantBlock];
};

inline Wide spread(double x) { return Wide{} + x; }
inline Wide wide(const float* p) { return __builtin_convertvector(peek<WideSource>(p), Wide); }
inline Wide magnitude(Wide a) { return (Wide)((WideBits)a & INT64_MAX); }
inline Wide clamp(Wide a, double least, double most) {
  const Wide low = spread(least), high = spread(most);
  return a > high ? high : a < low ? low : a;
}
inline Wide nearest(Wide a) { return a + kRound - kRound; }

// Sixteen elements of a row from `p`, of which `count` are there.
Vec load_source(DType dtype, const std::byte* p, size_t count) {
  alignas(64) std::byte bytes[kLanes * sizeof(float)];
  const size_t size = dtype == DType::f32 ? 4 : 2;
  if (count == kLanes) {
    if (size == 4) std::memcpy(bytes, p, kLanes * 4);
    else std::memcpy(bytes, p, kLanes * 2);
  } else {
    std::memset(bytes, 0, sizeof bytes);
    std::memcpy(bytes, p, count * size);
  }
  if (dtype == DType::f32) return load(reinterpret_cast<const float*>(bytes));
  const auto* halves = reinterpret_cast<const uint16_t*>(bytes);
  return dtype == DType::bf16 ? load_bf16(halves) : load_f16(halves);
}

// x[c][row] for `count` columns from `start`; zero past the last row and, up to a multiple of 16, the last column.
void load_block(const Packing& packing, Rows rows, size_t start, size_t count, Column* x) {
  const size_t size = size_t(byte_size(packing.from, 1));
  for (size_t c = 0; c < count; c += kLanes) {
    alignas(64) float square[kTileRows][kLanes] = {};
    const size_t n = std::min(kLanes, count - c);
    for (size_t row = 0; row < kTileRows; ++row)
      if (rows[row]) store(square[row], load_source(packing.from, rows[row] + (start + c) * size, n));
    for (size_t i = 0; i < kLanes; ++i)
      for (size_t row = 0; row < kTileRows; ++row) x[c + i][row] = square[row][i];
  }
}

// Largest magnitude of each row of a block, as bits: those of NaN and infinity are above all others.
void largest_of(const Column* x, size_t count, uint32_t* largest) {
  for (size_t c = 0; c < count; ++c)
    for (size_t row = 0; row < kLanes; ++row)
      largest[row] = std::max(largest[row], as<uint32_t>(x[c][row]) & kMagnitude);
}

// The first row that holds more than `limit`.
size_t refused_row(const uint32_t* largest, float limit) {
  return size_t(std::find_if(largest, largest + kTileRows, [&](uint32_t l) { return l > as<uint32_t>(limit); }) - largest);
}

inline void put(Integers& q, size_t lane, Wide value) {
  const WideInts ints = __builtin_convertvector(value, WideInts);
  std::memcpy(&q[lane], &ints, sizeof ints);
}

// ---- q8 ----

void q8_block(Block& block, size_t count, const uint32_t* largest, uint16_t* scales) {
  alignas(64) double step[kLanes];
  for (size_t row = 0; row < kLanes; ++row) {
    scales[row] = float_to_half(float(double(as<float>(largest[row])) / 127));
    step[row] = half_to_float(scales[row]);
  }
  for (size_t lane = 0; lane < kLanes; lane += kWide) {
    const Wide of = peek<Wide>(step + lane), divisor = of == spread(0) ? spread(double(kInfinity)) : of;
    for (size_t c = 0; c < count; ++c)
      put(block.q[c], lane, clamp(nearest(wide(block.x[c] + lane) / divisor), -127, 127));
  }
}

// ---- q4 ----

// The best scale of a group of each row.
void q4_scales(const Column* x, size_t count, double* wanted) {
  for (size_t lane = 0; lane < kLanes; lane += kWide) {
    Wide values[kQuantGroup], extreme{};
    for (size_t c = 0; c < count; ++c) {
      values[c] = wide(x[c] + lane);
      extreme = magnitude(values[c]) > magnitude(extreme) ? values[c] : extreme;
    }
    const Wide divisor = extreme == spread(0) ? spread(1) : extreme;  // all integers of such a group are zero
    Wide scale{}, best{};
    for (const double target : kQ4Extremes) {
      const Wide inverse = target / divisor;
      Wide xq{}, qq{};
      for (size_t c = 0; c < count; ++c) {
        const Wide q = clamp(nearest(values[c] * inverse), -8, 7);
        xq += values[c] * q;
        qq += q * q;
      }
      const auto better = xq * xq > best * qq;
      best = better ? xq * xq / qq : best;
      scale = better ? xq / qq : scale;
    }
    std::memcpy(wanted + lane, &scale, sizeof scale);
  }
}

// The nearest integer, that above of two.
inline double round_up_ties(double x) {
  const double below = std::floor(x);
  return x - below >= 0.5 ? below + 1 : below;
}

// A whole sub-scale is up to half off the group's best: one of its neighbours may round the values better.
void q4_group(const Column* x, Integers* q, size_t count, const double* wanted, const double* scale, int8_t* sub_scales) {
  alignas(64) double ideal[kLanes];
  for (size_t row = 0; row < kLanes; ++row) ideal[row] = scale[row] == 0 ? 0 : round_up_ties(wanted[row] / scale[row]);
  constexpr double kNeighbours[] = {0, -1, 1};
  alignas(64) Integers rounded[3][kQuantGroup];
  alignas(64) int32_t choice[kLanes];
  for (size_t lane = 0; lane < kLanes; lane += kWide) {
    Wide best{}, least = spread(double(kInfinity)), chosen = spread(3);
    for (int i = 0; i < 3; ++i) {
      const Wide v = peek<Wide>(ideal + lane) + kNeighbours[i], step = v * peek<Wide>(scale + lane);
      const Wide divisor = step == spread(0) ? spread(double(kInfinity)) : step;
      Wide error{};
      for (size_t c = 0; c < count; ++c) {
        const Wide value = wide(x[c] + lane), integer = clamp(nearest(value / divisor), -8, 7);
        put(rounded[i][c], lane, integer);
        const Wide miss = value - integer * step;
        error += miss * miss;
      }
      const auto better = (magnitude(v) <= spread(kQ4SubScale)) & (error < least);
      least = better ? error : least;
      best = better ? v : best;
      chosen = better ? spread(i) : chosen;
    }
    for (size_t i = 0; i < kWide; ++i) {
      sub_scales[lane + i] = int8_t(best[i]);
      choice[lane + i] = int32_t(chosen[i]);
    }
  }
  for (size_t c = 0; c < count; ++c)
    for (size_t row = 0; row < kLanes; ++row) {
      const int32_t first = choice[row] == 0 ? rounded[0][c][row] : 0;
      const int32_t second = choice[row] == 1 ? rounded[1][c][row] : first;
      q[c][row] = choice[row] == 2 ? rounded[2][c][row] : second;
    }
}

void q4_block(Block& block, size_t count, uint16_t* scales, int8_t (*sub_scales)[kLanes]) {
  constexpr size_t kGroups = kQuantBlock / kQuantGroup;
  alignas(64) double wanted[kGroups][kLanes], scale[kLanes];
  const size_t groups = (count + kQuantGroup - 1) / kQuantGroup;
  const auto size = [&](size_t g) { return std::min<size_t>(kQuantGroup, count - g * kQuantGroup); };
  for (size_t g = 0; g < groups; ++g) q4_scales(block.x + g * kQuantGroup, size(g), wanted[g]);
  for (size_t row = 0; row < kLanes; ++row) {
    double widest = 0;
    for (size_t g = 0; g < groups; ++g) widest = std::max(widest, std::abs(wanted[g][row]));
    scales[row] = float_to_half(float(widest / kQ4SubScale));
    scale[row] = half_to_float(scales[row]);
  }
  for (size_t g = 0; g < groups; ++g)
    q4_group(block.x + g * kQuantGroup, block.q + g * kQuantGroup, size(g), wanted[g], scale, sub_scales[g]);
}

// ---- fp8 ----

// e4m3 of a float32 that is no NaN, to nearest even; past the largest, the largest.
inline int32_t to_e4m3(float x) {
  const uint32_t bits = as<uint32_t>(x), size = bits & kMagnitude;
  const uint32_t normal = ((size + 0x7ffff + (size >> 20 & 1)) >> 20) - (120 << 3);
  const uint32_t subnormal = as<uint32_t>(as<float>(size) + 0x1p14f) - 0x46800000;  // units of 2^-9
  const uint32_t finite = size >= 0x3c800000 ? normal : subnormal;
  return int32_t((bits >> 24 & 0x80) | (size >= 0x43e00000 ? 0x7e : finite));
}

void fp8_block(Block& block, size_t count, const float* step) {
  for (size_t c = 0; c < count; ++c)
    for (size_t row = 0; row < kLanes; ++row) block.q[c][row] = to_e4m3(block.x[c][row] / step[row]);
}

// ---- tiles ----

// Quads along K of int8 and e4m3; two quads of int4 in the halves of four bytes.
void store_block(DType to, const Integers* q, size_t count, std::byte* tile) {
  const bool int4 = to == DType::i4;
  for (size_t c = 0; c < count; c += int4 ? 8 : 4, tile += kLanes * 4) {
    alignas(64) uint32_t words[kLanes];
    if (int4) {
      for (size_t row = 0; row < kLanes; ++row) {
        uint32_t word = 0;
        for (size_t i = 0; i < 8; ++i) word |= (uint32_t(q[c + i][row]) & 15) << (i % 4 * 8 + i / 4 * 4);
        words[row] = word;
      }
    } else {
      for (size_t row = 0; row < kLanes; ++row) {
        uint32_t word = 0;
        for (size_t i = 0; i < 4; ++i) word |= (uint32_t(q[c + i][row]) & 255) << i * 8;
        words[row] = word;
      }
    }
    std::memcpy(tile, words, sizeof words);
  }
}

// fp8 scales a row by the largest of all its elements.
size_t fp8_steps(const Packing& packing, Rows rows, float* step, std::byte* scales) {
  constexpr float kLeast = 0x1p-126f, kE4m3Max = 448;
  for (size_t row = 0; row < kTileRows; ++row) {
    step[row] = 1;
    if (!rows[row]) continue;
    const size_t size = size_t(byte_size(packing.from, 1));
    alignas(64) uint32_t largest[kLanes] = {};
    for (size_t c = 0; c < packing.cols; c += kLanes) {
      alignas(64) Column values[1];
      store(values[0], load_source(packing.from, rows[row] + c * size, std::min(kLanes, packing.cols - c)));
      largest_of(values, 1, largest);
    }
    const float most = as<float>(*std::max_element(largest, largest + kLanes));
    if (!(most < kInfinity)) return row;
    const float scale = most == 0 ? 0 : std::max(most / kE4m3Max, kLeast);
    std::memcpy(scales + row * sizeof scale, &scale, sizeof scale);
    if (most != 0) step[row] = scale;
  }
  return kTileRows;
}

size_t pack_quantized(const Packing& packing, Rows rows, std::byte* tile, std::byte* scales, std::byte* sub_scales) {
  constexpr float kF16Max = 65504, kLimits[] = {0, kF16Max * 127, kF16Max * 4 * kQ4SubScale};
  const PackFormat format = packing.format;
  alignas(64) float step[kTileRows];
  if (format == PackFormat::fp8) {
    if (const size_t row = fp8_steps(packing, rows, step, scales); row < kTileRows) return row;
  }
  size_t refused = kTileRows;
  Block block;
  for (size_t start = 0; start < packing.padded_cols(); start += kQuantBlock) {
    const size_t count = std::min<size_t>(kQuantBlock, packing.cols - start);
    const size_t padded = std::min<size_t>(kQuantBlock, packing.padded_cols() - start);
    load_block(packing, rows, start, count, block.x);
    uint16_t block_scales[kTileRows];
    int8_t groups[kQuantBlock / kQuantGroup][kTileRows];
    if (format == PackFormat::fp8) fp8_block(block, count, step);
    else {
      alignas(64) uint32_t largest[kTileRows] = {};
      largest_of(block.x, count, largest);
      refused = std::min(refused, refused_row(largest, kLimits[size_t(format)]));
      if (refused < kTileRows) continue;  // a row before it may hold one further on
      if (format == PackFormat::q8) q8_block(block, count, largest, block_scales);
      else q4_block(block, count, block_scales, groups);
    }
    for (size_t c = count; c < padded; ++c) std::fill_n(block.q[c], kTileRows, 0);
    store_block(packing.to, block.q, padded, tile + kTileRows * byte_size(packing.to, start));
    for (size_t row = 0; row < kTileRows && rows[row] && format != PackFormat::fp8; ++row) {
      std::byte* at = scales + row * packing.scale_bytes() + start / kQuantBlock * sizeof(uint16_t);
      std::memcpy(at, &block_scales[row], sizeof(uint16_t));
      if (format == PackFormat::q8) continue;
      std::byte* sub = sub_scales + row * packing.sub_scale_bytes() + start / kQuantGroup;
      for (size_t g = 0; g * kQuantGroup < count; ++g) sub[g] = std::byte(groups[g][row]);
    }
  }
  return refused;
}

// (16, units) to (units, 16), where a unit is the elements that a lane reads at once.
template <class Unit>
void transpose(const Packing& packing, Rows rows, std::byte* tile) {
  constexpr size_t kRun = 64;
  const size_t units = packing.tile_bytes() / kTileRows / sizeof(Unit), whole = packing.row_bytes() / sizeof(Unit);
  for (size_t start = 0; start < units; start += kRun)
    for (size_t row = 0; row < kTileRows; ++row)
      for (size_t unit = start; unit < std::min(start + kRun, units); ++unit) {
        Unit value = 0;
        if (rows[row] && unit < whole) value = peek<Unit>(rows[row] + unit * sizeof(Unit));
        else if (rows[row] && unit == whole)
          std::memcpy(&value, rows[row] + unit * sizeof(Unit), packing.row_bytes() % sizeof(Unit));
        std::memcpy(tile + (unit * kTileRows + row) * sizeof(Unit), &value, sizeof value);
      }
}

}  // namespace

size_t pack_tile(const Packing& packing, Rows rows, std::byte* tile, std::byte* scales, std::byte* sub_scales) {
  if (packing.format != PackFormat::plain) return pack_quantized(packing, rows, tile, scales, sub_scales);
  switch (byte_size(packing.to, kLayouts[size_t(packing.layout)].pack)) {
    case 1: transpose<uint8_t>(packing, rows, tile); break;
    case 2: transpose<uint16_t>(packing, rows, tile); break;
    default: transpose<uint32_t>(packing, rows, tile);
  }
  return kTileRows;
}

}  // namespace ingot::cpu::INGOT_ISA

// Runs CPU kernels for tests: on every instruction set of the machine and several thread counts, whose bits must agree.
#pragma once
#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "../core/denormals.h"
#include "../core/scratch.h"
#include "../core/thread_pool.h"
#include "../cpu/cpu.h"
#include "check.h"

#if defined(INGOT_HAS_amx_emulated)
namespace ingot::cpu::amx_emulated { extern const KernelTable table; }
#endif

namespace ingot::test {

// What the machine has, and AMX over tiles in software (tiles.h) where it has all else.
inline const std::vector<cpu::InstructionSet>& tested_sets() {
  static const std::vector<cpu::InstructionSet> sets = [] {
    std::vector<cpu::InstructionSet> found(cpu::instruction_sets().begin(), cpu::instruction_sets().end());
#if defined(INGOT_HAS_amx_emulated)
    for (const cpu::InstructionSet& set : cpu::instruction_sets())
      if (!std::strcmp(set.name, "avx512_vnni") && set.table)
        found.push_back({"amx_emulated", &cpu::amx_emulated::table, nullptr, nullptr, nullptr});
#endif
    return found;
  }();
  return sets;
}

inline size_t spans(size_t cols, size_t span) { return (cols + span - 1) / span; }

// A step of sequences that have `past` positions each and take `tokens` more; blocks were dealt to them in turns.
struct EvenStep : Step {
  std::vector<int32_t> at, owners, starts{0}, table;

  EvenStep(size_t count, size_t each, size_t past) : Step{} {
    const size_t blocks = spans(past + each, kBlockTokens);
    for (size_t s = 0; s < count; ++s) {
      for (size_t t = 0; t < each; ++t) at.push_back(int32_t(past + t)), owners.push_back(int32_t(s));
      starts.push_back(int32_t(at.size()));
      for (size_t b = 0; b < blocks; ++b) table.push_back(int32_t(b * count + s));
    }
    tokens = uint32_t(count * each);
    sequences = uint32_t(count);
    blocks_per_sequence = uint32_t(blocks);
    positions = at.data();
    token_sequence = owners.data();
    sequence_start = starts.data();
    block_table = table.data();
  }
  EvenStep(const EvenStep&) = delete;
};

struct Random {
  std::mt19937 engine;
  explicit Random(uint32_t seed) : engine(seed) {}
  double uniform() { return double(engine()) / 4294967296.0; }
  double normal() { return std::sqrt(-2 * std::log(1 - uniform())) * std::cos(6.283185307179586 * uniform()); }
  size_t below(size_t n) { return engine() % n; }
  template <class T, size_t N>
  T pick(const T (&values)[N]) { return values[below(N)]; }
};

// A register: rows of `width` f32 (or i32) values at an odd stride; what lies between them must stay as it is.
struct Register {
  size_t rows, width, stride;
  DType dtype;
  std::vector<float> data;

  Register(size_t rows, size_t width, DType dtype = DType::f32)
      : rows(rows), width(width), stride(width + 3), dtype(dtype), data(rows * stride, kGuard) {}
  static constexpr float kGuard = -12345.5f;

  float* row(size_t r) { return data.data() + r * stride; }
  const float* row(size_t r) const { return data.data() + r * stride; }
  Matrix matrix() {
    return {reinterpret_cast<std::byte*>(data.data()), stride * 4, uint32_t(rows), uint32_t(width), dtype};
  }
  void fill(Random& random, double scale = 1) {
    for (size_t r = 0; r < rows; ++r)
      for (size_t c = 0; c < width; ++c) row(r)[c] = float(random.normal() * scale);
  }
  void clear() { std::fill(data.begin(), data.end(), kGuard); }
  bool guarded() const {
    for (size_t r = 0; r < rows; ++r)
      for (size_t c = width; c < stride; ++c)
        if (row(r)[c] != kGuard) return false;
    return true;
  }
};

inline uint32_t bits_of(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return bits;
}
inline float float_of(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

// Ties to even, written for clarity; not for NaN.
inline uint16_t to_bf16(float f) {
  const uint32_t bits = bits_of(f);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float from_bf16(uint16_t h) { return float_of(uint32_t(h) << 16); }
inline float from_f16(uint16_t h) {
  const int exponent = h >> 10 & 31, mantissa = h & 1023;
  const double value = exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
  return float(h & 0x8000 ? -value : value);
}
// The nearest, by search: the positive halves are in order of their bits.
inline uint16_t to_f16(float f) {
  const double x = std::fabs(double(f));
  int low = 0, high = 0x7bff;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (double(from_f16(uint16_t(middle))) < x) low = middle + 1;
    else high = middle;
  }
  const double above = double(from_f16(uint16_t(low))) - x, below = low ? x - double(from_f16(uint16_t(low - 1))) : 1e9;
  const int best = below < above || (below == above && low % 2) ? low - 1 : low;
  return uint16_t((f < 0 ? 0x8000 : 0) | best);
}

// A stored weight, and what its elements are once rounded.
struct Stored {
  std::vector<std::byte> bytes;
  std::vector<float> values;  // (rows, cols)
  size_t rows, cols;
  DType dtype;
  Layout layout;

  Weight weight() const { return {bytes.data(), uint32_t(rows), uint32_t(cols), dtype, layout}; }
  float at(size_t r, size_t c) const { return values[r * cols + c]; }
};

inline Stored pack(const std::vector<float>& values, size_t rows, size_t cols, DType dtype, Layout layout) {
  const auto [tile, pack, align] = kLayouts[size_t(layout)];
  const size_t padded = (cols + align - 1) / align * align, padded_rows = (rows + tile - 1) / tile * tile;
  Stored s{std::vector<std::byte>(byte_size(dtype, padded * padded_rows)), values, rows, cols, dtype, layout};
  for (size_t r = 0; r < rows; ++r) {
    for (size_t c = 0; c < cols; ++c) {
      const size_t index = r / tile * tile * padded + (c / pack * tile + r % tile) * pack + c % pack;
      float& value = s.values[r * cols + c];
      const auto put = [&](auto element) { std::memcpy(&s.bytes[index * sizeof element], &element, sizeof element); };
      if (dtype == DType::f32) put(value);
      else if (dtype == DType::i8) put(int8_t(value));
      else if (dtype == DType::i4)
        s.bytes[index / 8 * 4 + index % 4] |= std::byte((int(value) & 15) << index % 8 / 4 * 4);
      else if (dtype == DType::bf16) put(to_bf16(value)), value = from_bf16(to_bf16(value));
      else put(to_f16(value)), value = from_f16(to_f16(value));
    }
  }
  return s;
}

inline Layout layout_of(DType dtype) {
  switch (dtype) {
    case DType::bf16: return Layout::tile16x2;
    case DType::i8: return Layout::tile16x4;
    case DType::i4: return Layout::tile16x8;
    default: return Layout::tile16;
  }
}

inline bool has_scales(DType dtype) { return dtype == DType::i8 || dtype == DType::i4; }

inline float random_value(Random& random, DType dtype) {
  if (dtype == DType::i8) return float(int(random.below(255)) - 127);
  return dtype == DType::i4 ? float(int(random.below(16)) - 8) : float(random.normal());
}
inline Stored random_weight(Random& random, size_t rows, size_t cols, DType dtype, Layout layout) {
  std::vector<float> values(rows * cols);
  for (float& v : values) v = random_value(random, dtype);
  return pack(values, rows, cols, dtype, layout);
}
inline Stored random_weight(Random& random, size_t rows, size_t cols, DType dtype) {
  return random_weight(random, rows, cols, dtype, layout_of(dtype));
}
inline Stored random_scales(Random& random, size_t rows, size_t cols) {
  std::vector<float> values(rows * spans(cols, kQuantBlock));
  for (float& v : values) v = float(0.001 + random.uniform() * 0.02);
  return pack(values, rows, spans(cols, kQuantBlock), DType::f16, Layout::tile16);
}
inline Stored random_sub_scales(Random& random, size_t rows, size_t cols) {
  std::vector<float> values(rows * spans(cols, kQuantGroup));
  for (float& v : values) v = float(int(random.below(31)) - 15);
  return pack(values, rows, spans(cols, kQuantGroup), DType::i8, Layout::tile16);
}
// What a weight of a format is stored as; its value at (row, column).
struct StoredFactors {
  Stored weight, scales, sub_scales;
  StoredFactors(Random& random, size_t rows, size_t cols, DType dtype)
      : weight(random_weight(random, rows, cols, dtype)), scales(random_scales(random, rows, cols)),
        sub_scales(random_sub_scales(random, rows, cols)) {}
  bool scaled() const { return has_scales(weight.dtype); }
  // Integer of int8, integer times sub-scale of int4, else the value.
  float unscaled(size_t r, size_t c) const {
    return weight.at(r, c) * (weight.dtype == DType::i4 ? sub_scales.at(r, c / kQuantGroup) : 1.0f);
  }
  float at(size_t r, size_t c) const { return unscaled(r, c) * (scaled() ? scales.at(r, c / kQuantBlock) : 1.0f); }
  void give(Call& call) const {
    call.weights[op::linear::weight_weight] = weight.weight();
    if (scaled()) call.weights[op::linear::weight_scales] = scales.weight();
    if (weight.dtype == DType::i4) call.weights[op::linear::weight_sub_scales] = sub_scales.weight();
  }
};
static_assert(size_t(op::linear::weight_scales) == op::logits::weight_scales);
inline Stored random_row(Random& random, size_t cols) {
  return random_weight(random, 1, cols, DType::f32, Layout::row);
}

inline void run_on(const KernelTable& table, unsigned threads, uint16_t opcode, const Step& step, const Call& call,
                   bool traced = false) {
  static Scratch scratch;
  const FlushDenormals flush;
  ThreadPool& pool = ThreadPool::shared();
  const ThreadPool::Lease lease(pool, threads);
  table.kernels[opcode]({step, pool, scratch, traced}, call);
  scratch.reset();
}

// Runs a kernel on everything; `reset` puts its outputs and states back first. All results must have the same bits.
inline void run_everywhere(uint16_t opcode, const Step& step, const Call& call, std::vector<Register*> outputs,
                           const std::function<void()>& reset = [] {}) {
  std::vector<std::vector<float>> expected;
  for (const cpu::InstructionSet& set : tested_sets()) {
    for (unsigned threads = 1; set.table && threads <= 3; ++threads) {
      reset();
      for (Register* r : outputs) r->clear();
      run_on(*set.table, threads, opcode, step, call);
      for (size_t i = 0; i < outputs.size(); ++i) {
        CHECK(outputs[i]->guarded());
        if (expected.size() <= i) expected.push_back(outputs[i]->data);
        const bool same = std::memcmp(expected[i].data(), outputs[i]->data.data(), expected[i].size() * 4) == 0;
        if (!same) std::fprintf(stderr, "opcode %u: %s with %u threads differs\n", opcode, set.name, threads);
        CHECK(same);
      }
    }
  }
}

inline bool near(double actual, double expected, double tolerance) {
  const bool close = std::fabs(actual - expected) <= tolerance;
  if (!close) std::fprintf(stderr, "got %.9g, expected %.9g +- %.3g\n", actual, expected, tolerance);
  return close;
}

inline double activate(Activation activation, double x) {
  switch (activation) {
    case Activation::none: return x;
    case Activation::silu: return x / (1 + std::exp(-x));
    case Activation::gelu: return x * 0.5 * std::erfc(-x / std::sqrt(2.0));
    case Activation::gelu_tanh: return x / (1 + std::exp(-2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::relu: return x > 0 ? x : 0;
    case Activation::sigmoid: return 1 / (1 + std::exp(-x));
    case Activation::tanh: return std::tanh(x);
    case Activation::relu2: return x > 0 ? x * x : 0;
  }
  return 0;
}

}  // namespace ingot::test

// The register blocks of a product: R rows of x against T tiles of 16 outputs.
//
// Rows of x are packed in panels of up to kPanel: element k of row r of a panel of R rows is at [k * R + r] (int8: quad
// k / 4 of row r at [(k / 4) * R + r]), so that a block reads one stream whatever the row stride.
#pragma once
#include "../gen/abi.h"
#include "simd.h"

namespace ingot::cpu::INGOT_ISA {

// Rows of a full panel: as many as keep the sums of a block in registers (32 of 512 bits; else 16).
inline constexpr int kPanel = kParts == 1 ? 8 : kParts == 2 ? 4 : 2;
// Tiles a block takes at once: fewer rows leave registers for more tiles, hence more memory streams.
inline constexpr int tiles_of(int rows) { return kParts == 1 ? (rows <= 2 ? 4 : 2) : (rows == 1 ? 2 : 1); }

template <int R, int T>
inline void clear(Vec (&sums)[R][T]) {
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) sums[r][t] = zero();
}

struct F32Weights {
  using Element = float;
  template <int Parity>
  static Vec load(const float* tile, size_t k) { return cpu::INGOT_ISA::load(tile + k * kLanes); }
  static Vec sum(Vec a, Vec w, Vec c) { return fma(a, w, c); }
};
struct F16Weights {
  using Element = uint16_t;
  template <int Parity>
  static Vec load(const uint16_t* tile, size_t k) { return load_f16(tile + k * kLanes); }
  static Vec sum(Vec a, Vec w, Vec c) { return fma(a, w, c); }
};
struct Bf16Weights {
  using Element = uint16_t;
  template <int Parity>
  static Vec load(const uint16_t* tile, size_t k) {
    const uint16_t* pairs = tile + k / 2 * kLanes * 2;
    return Parity ? load_odd(pairs) : load_even(pairs);
  }
  static Vec sum(Vec a, Vec w, Vec c) { return fma_exact(a, w, c); }
};

template <class Weights>
struct FloatProduct {
  const float* panels;                     // rows x k
  const typename Weights::Element* weight;
  size_t k;                                // padded to the layout's alignment
  size_t tile_stride() const { return k * kLanes; }

  // Adds element k = 2 i + Parity of every row and output.
  template <int Parity, int R, int T>
  void step(const float* a, const typename Weights::Element* w, size_t at, Vec (&s)[R][T]) const {
    Vec b[T];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) b[t] = Weights::template load<Parity>(w + t * tile_stride(), at);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec x = set(a[at * R + r]);
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) s[r][t] = Weights::sum(x, b[t], s[r][t]);
    }
  }

  template <int R, int T>
  void block(size_t row, size_t tile, Vec (&acc)[R][T]) const {
    const float* a = panels + row * k;
    const typename Weights::Element* w = weight + tile * tile_stride();
    clear(acc);
    for (size_t k0 = 0; k0 < k; k0 += 32) {
      const size_t n = k - k0 < 32 ? k - k0 : 32;
      Vec even[R][T], odd[R][T];
      if constexpr (R * T * kParts <= (kParts == 1 ? 8 : 4)) {
        // Both sums fit in registers: one pass, which keeps more loads from memory in flight.
        clear(even);
        clear(odd);
        for (size_t i = 0; i < n / 2; ++i) {
          step<0>(a, w, k0 + 2 * i, even);
          step<1>(a, w, k0 + 2 * i + 1, odd);
        }
        if (n % 2) step<0>(a, w, k0 + n - 1, even);
      } else {
        clear(even);
        for (size_t i = 0; i < (n + 1) / 2; ++i) step<0>(a, w, k0 + 2 * i, even);
        clear(odd);
        for (size_t i = 0; i < n / 2; ++i) step<1>(a, w, k0 + 2 * i + 1, odd);
      }
      for (int r = 0; r < R; ++r)
        for (int t = 0; t < T; ++t) acc[r][t] = acc[r][t] + (even[r][t] + odd[r][t]);
    }
  }
};

// Quads 2 i + Parity of 16 outputs, plus kOffset.
struct Int8Weights {
  using Element = int8_t;
  static constexpr int32_t kOffset = kQuadOffset;
  static constexpr size_t kPerElement = 1;
  template <int Parity>
  static auto load(const int8_t* tile, size_t quad) { return load_quads(tile + quad * 4 * kLanes); }
};
struct Int4Weights {
  using Element = uint8_t;
  static constexpr int32_t kOffset = kNibbleOffset;
  static constexpr size_t kPerElement = 2;
  template <int Parity>
  static auto load(const uint8_t* tile, size_t quad) { return load_nibbles<Parity>(tile + quad / 2 * 4 * kLanes); }
};

template <class Weights>
struct IntegerProduct {
  using Element = typename Weights::Element;
  const int8_t* panels;        // rows x k
  const float* row_scales;     // panels of (group, row)
  const int32_t* row_offsets;  // panels of (group, row): -kOffset times the group's sum
  const Element* weight;
  const uint16_t* scales;
  size_t k;                    // a multiple of kQuantGroup
  size_t tile_stride() const { return k * kLanes / Weights::kPerElement; }

  // Adds quad 2 i + Parity of every row and output.
  template <int Parity, int R, int T>
  void step(const int8_t* a, const Element* w, size_t quad, Ints (&s)[R][T]) const {
    decltype(Weights::template load<Parity>(w, quad)) b[T];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) b[t] = Weights::template load<Parity>(w + t * tile_stride(), quad);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const int32_t x = peek<int32_t>(a + (quad * R + r) * 4);
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) s[r][t] = dot(s[r][t], b[t], x);
    }
  }

  template <int R, int T>
  void block(size_t row, size_t tile, Vec (&acc)[R][T]) const {
    const size_t groups = k / kQuantGroup;
    const int8_t* a = panels + row * k;
    const Element* w = weight + tile * tile_stride();
    const float* row_scale = row_scales + row * groups;
    const int32_t* offset = row_offsets + row * groups;
    clear(acc);
    for (size_t g = 0; g < groups; ++g) {
      Ints s[R][T];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) s[r][t] = set_int(offset[g * R + r]);
      for (size_t quad = g * 8; quad < g * 8 + 8; quad += 2) {
        step<0>(a, w, quad, s);
        step<1>(a, w, quad + 1, s);
      }
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
        const Vec scale = load_f16(scales + ((tile + t) * groups + g) * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          acc[r][t] = fma(to_float(s[r][t]), scale * set(row_scale[g * R + r]), acc[r][t]);
        }
      }
    }
  }
};

}  // namespace ingot::cpu::INGOT_ISA

// The register blocks of a product: R rows of x against T tiles of 16 outputs.
//
// Rows of x are packed in panels of up to kPanel: element k of row r of a panel of R rows is at [k * R + r] (int8: quad
// k / 4 of row r at [(k / 4) * R + r]), so that a block reads one stream whatever the row stride.
#pragma once
#include "../gen/abi.h"
#include "parallel.h"
#include "prefetch.h"

namespace ingot::cpu::INGOT_ISA {

// Rows of a full panel: as many as keep the sums of a block in registers (32 of 512 bits; else 16).
inline constexpr int kPanel = kParts == 1 ? 8 : kParts == 2 ? 4 : 2;
// Tiles a block takes at once: fewer rows leave registers for more, which share the loads of x.
inline constexpr int tiles_of(int rows) { return kParts == 1 ? (rows <= 2 ? 4 : 2) : (rows == 1 ? 2 : 1); }
// The same where weights come from memory for these rows alone, and a tile is a stream: AMD's cores read one up to a
// sixth faster than two or four; Intel's, which have AMX, read four at 94 % of what the memory gives.
#if defined(INGOT_ISA_amx) || defined(INGOT_ISA_portable)
inline constexpr int streams_of(int rows) { return tiles_of(rows); }
#else
inline constexpr int streams_of(int) { return 1; }
#endif

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
  void step(const float* a, const typename Weights::Element* w, size_t at, ptrdiff_t far, Vec (&s)[R][T]) const {
    Vec b[T];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      b[t] = Weights::template load<Parity>(w + t * tile_stride(), at);
      if (Parity == 0) prefetch_weight(w + t * tile_stride() + at * kLanes, far);
    }
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
      const size_t n = k - k0 < 32 ? k - k0 : 32, line = kLanes * sizeof *w;
      const ptrdiff_t far = far_ahead<T>(k0 * line, k * line);
      Vec even[R][T], odd[R][T];
      if constexpr (R * T * kParts <= (kParts == 1 ? 8 : 4)) {
        // Both sums fit in registers: one pass, which keeps more loads from memory in flight.
        clear(even);
        clear(odd);
        for (size_t i = 0; i < n / 2; ++i) {
          step<0>(a, w, k0 + 2 * i, far, even);
          step<1>(a, w, k0 + 2 * i + 1, far, odd);
        }
        if (n % 2) step<0>(a, w, k0 + n - 1, far, even);
      } else {
        clear(even);
        for (size_t i = 0; i < (n + 1) / 2; ++i) step<0>(a, w, k0 + 2 * i, far, even);
        clear(odd);
        for (size_t i = 0; i < n / 2; ++i) step<1>(a, w, k0 + 2 * i + 1, far, odd);
      }
      for (int r = 0; r < R; ++r)
        for (int t = 0; t < T; ++t) acc[r][t] = acc[r][t] + (even[r][t] + odd[r][t]);
    }
  }
};

// Quads 2 i + Parity of 16 outputs, plus kOffset.
struct Int8Weights {
  using Element = int8_t;
  static constexpr bool kInMemory = true;
  static constexpr int32_t kOffset = kQuadOffset;
  static constexpr size_t kPerElement = 1, kSpan = kQuantBlock;
  template <int Parity>
  static auto load(const int8_t* tile, size_t quad) { return load_quads(tile + quad * 4 * kLanes); }
};
// int8 that lie in a thread's own cache, where asking ahead would take lines from another's.
struct CachedWeights : Int8Weights {
  static constexpr bool kInMemory = false;
};
struct Int4Weights {
  using Element = uint8_t;
  static constexpr bool kInMemory = true;
  static constexpr int32_t kOffset = kNibbleOffset;
  static constexpr size_t kPerElement = 2, kSpan = kQuantGroup;
  template <int Parity>
  static auto load(const uint8_t* tile, size_t quad) { return load_nibbles<Parity>(tile + quad / 2 * 4 * kLanes); }
};

template <class Weights>
struct IntegerProduct {
  using Element = typename Weights::Element;
  static constexpr bool kSubScaled = Weights::kSpan == kQuantGroup;
  const int8_t* panels;        // rows x k
  const float* row_scales;     // panels of (block, row)
  const int32_t* row_offsets;  // panels of (span, row): -kOffset times the span's sum
  const Element* weight;
  const uint16_t* scales;
  const int8_t* sub_scales;    // of int4
  size_t k;                    // a multiple of kQuantGroup
  size_t tile_stride() const { return k * kLanes / Weights::kPerElement; }

  // Adds quad 2 i + Parity of every row and output.
  template <int Parity, int R, int T>
  void step(const int8_t* a, const Element* w, size_t quad, ptrdiff_t far, Ints (&s)[R][T]) const {
    decltype(Weights::template load<Parity>(w, quad)) b[T];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      b[t] = Weights::template load<Parity>(w + t * tile_stride(), quad);
      if (Weights::kInMemory && (Parity == 0 || Weights::kPerElement == 1))
        prefetch_weight(w + t * tile_stride() + quad * 64 / Weights::kPerElement, far);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const int8_t* x = a + (quad * R + r) * 4;
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) s[r][t] = dot<T>(s[r][t], b[t], x);
    }
  }

  // The sums over one span, biased by its offsets.
  template <int R, int T>
  void span(const int8_t* a, const Element* w, const int32_t* offset, size_t at, ptrdiff_t far,
            Ints (&s)[R][T]) const {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) s[r][t] = set_int(offset[at * R + r]);
    const size_t first = at * Weights::kSpan, last = first + Weights::kSpan < k ? first + Weights::kSpan : k;
    for (size_t from = first; from < last; from += kQuantGroup) {
      const int8_t* x = a + from * R;
      const Element* group = w + from * kLanes / Weights::kPerElement;
#pragma GCC unroll 4
      for (size_t quad = 0; quad < kQuantGroup / 4; quad += 2) {
        step<0>(x, group, quad, far, s);
        step<1>(x, group, quad + 1, far, s);
      }
    }
  }

  // The integer sums of block `at`.
  template <int R, int T>
  void sum(const int8_t* a, const Element* w, const int32_t* offset, size_t tile, size_t at,
           Ints (&total)[R][T]) const {
    const ptrdiff_t far = far_ahead<T>(at * kQuantBlock * kLanes / Weights::kPerElement, tile_stride());
    if constexpr (!kSubScaled) {
      span(a, w, offset, at, far, total);
    } else {
      constexpr size_t kGroups = kQuantBlock / kQuantGroup;
      const size_t groups = k / kQuantGroup, end = (at + 1) * kGroups < groups ? (at + 1) * kGroups : groups;
      for (int r = 0; r < R; ++r)
        for (int t = 0; t < T; ++t) total[r][t] = set_int(0);
      for (size_t g = at * kGroups; g < end; ++g) {
        Ints s[R][T];
        span(a, w, offset, g, far, s);
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) {
          const Ints scale = load_ints(sub_scales + ((tile + t) * groups + g) * kLanes);
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) total[r][t] = add_product16(total[r][t], s[r][t], scale);
        }
      }
    }
  }

  // Asks for what scales block `at` of `tile`.
  void prefetch_scales(size_t tile, size_t at) const {
    prefetch<kIntoL2>(scales + (tile * ceil_div(k, kQuantBlock) + at) * kLanes);
    if constexpr (kSubScaled) {
      constexpr size_t kGroups = kQuantBlock / kQuantGroup;
      const int8_t* from = sub_scales + (tile * (k / kQuantGroup) + at * kGroups) * kLanes;
      for (size_t line = 0; line < kGroups * kLanes; line += 64) prefetch<kIntoL2>(from + line);
    }
  }

  template <int R, int T>
  void block(size_t row, size_t tile, Vec (&acc)[R][T]) const {
    const size_t blocks = ceil_div(k, kQuantBlock);
    const int8_t* a = panels + row * k;
    const Element* w = weight + tile * tile_stride();
    const float* row_scale = row_scales + row * blocks;
    const int32_t* offset = row_offsets + row * ceil_div(k, Weights::kSpan);
    clear(acc);
    for (size_t b = 0; b < blocks; ++b) {
      Ints total[R][T];
      for (int t = 0; Weights::kInMemory && t < T; ++t) prefetch_scales(tile + T + t, b);
      // In memory meanwhile: else a compiler spills integer sums, which are added to all the time.
      if constexpr (kSubScaled && kParts == 1 && R * T >= 8) asm volatile("" : "+m"(acc));
      sum(a, w, offset, tile, b, total);
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
        const Vec scale = load_f16(scales + ((tile + t) * blocks + b) * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          acc[r][t] = fma(to_float(total[r][t]), scale * set(row_scale[b * R + r]), acc[r][t]);
        }
      }
    }
  }
};

}  // namespace ingot::cpu::INGOT_ISA

// Attention of some rows, (token, head) pairs that share a head of keys, over one split: up to kSplit positions, aligned
// at absolute ones. The order of every sum belongs to positions alone: as `product` sums (product.h), a score runs over
// the head in blocks of 32 elements, an output over the split in blocks of 32 positions.
#pragma once
#include <algorithm>

#include "attention_amx.h"
#include "attention_softmax.h"
#include "attention_state.h"
#include "parallel.h"
#include "prefetch.h"

namespace ingot::cpu::INGOT_ISA::paged {

inline constexpr size_t kSplit = 256;
inline constexpr size_t kSplitPages = kSplit / Pages::kTokens;
// Floats from one row of scores to the next: not a multiple of 4 KiB, which would crowd few sets of the cache.
inline constexpr size_t kScoreStride = kSplit + kLanes;

// Rows, and tiles of 16 lanes, whose even and odd sums stay in registers.
inline constexpr int kRows = kParts == 1 ? 6 : kParts == 2 ? 2 : 1;
inline constexpr int kRowTiles = kParts == 1 ? 2 : 1;

// Calls f(first row, integral constant R) for runs of R <= kRows rows.
template <int R = kRows, class F>
void each_rows(size_t rows, const F& f, size_t row = 0) {
  for (; rows - row >= size_t(R); row += R) f.template operator()<R>(row);
  if constexpr (R > 1) each_rows<R - 1>(rows, f, row);
}

// even += x[r] . tile's even elements, and odd likewise, over `pairs` pairs. Prefetches at `distance` bytes, unless
// 0, into L2: Zen 4 reads states 1.7 times as fast as into L1, an Intel with AMX 1.05.
template <class S, int R, int T>
inline void add_pairs(const float* x, size_t stride, const typename S::Element* tile, size_t tile_stride, size_t pairs,
                      ptrdiff_t distance, Vec (&even)[R][T], Vec (&odd)[R][T]) {
  constexpr size_t kLines = 2 * kLanes * sizeof(typename S::Element);
  for (size_t i = 0; i < pairs; ++i) {
    Vec a[T], b[T];
#pragma GCC unroll 2
    for (int t = 0; t < T; ++t) {
      a[t] = S::even(tile + t * tile_stride, i);
      b[t] = S::odd(tile + t * tile_stride, i);
      if (distance) {
        const char* at = reinterpret_cast<const char*>(tile + t * tile_stride) + i * kLines + distance;
        for (size_t line = 0; line < kLines; line += 64) prefetch<kIntoL2>(at + line);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec u = set(x[r * stride + 2 * i]), w = set(x[r * stride + 2 * i + 1]);
#pragma GCC unroll 2
      for (int t = 0; t < T; ++t) {
        even[r][t] = S::sum(u, a[t], even[r][t]);
        odd[r][t] = S::sum(w, b[t], odd[r][t]);
      }
    }
  }
}

template <int R, int T>
inline void clear(Vec (&a)[R][T], Vec (&b)[R][T]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int t = 0; t < T; ++t) a[r][t] = b[r][t] = zero();
}

// Scores of R queries against T x 16 positions.
template <class S, int R, int T>
void score(const float* queries, size_t dim, const typename S::Element* keys, ptrdiff_t distance, float* scores) {
  Vec even[R][T], odd[R][T];
  for (size_t d = 0; d < dim; d += 32) {
    clear(even, odd);
    add_pairs<S>(queries + d, dim, keys + d * kLanes, dim * kLanes, (dim - d < 32 ? dim - d : 32) / 2, distance, even,
                 odd);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int t = 0; t < T; ++t) {
        float* to = scores + r * kScoreStride + t * kLanes;
        store(to, (d ? load(to) : zero()) + (even[r][t] + odd[r][t]));
      }
  }
}

// Adds a page's positions to T x 16 elements of R outputs.
template <class S, int R, int T>
void add_values(const float* weights, const typename S::Element* values, ptrdiff_t distance, float* out, size_t dim) {
  Vec even[R][T], odd[R][T];
  clear(even, odd);
  add_pairs<S>(weights, kScoreStride, values, Pages::kTokens * kLanes, Pages::kTokens / 2, distance, even, odd);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int t = 0; t < T; ++t) {
      float* to = out + r * dim + t * kLanes;
      store(to, load(to) + (even[r][t] + odd[r][t]));
    }
}

// A head of keys and values, in the pages of one split.
template <class S>
struct SplitPages {
  using Page = const typename S::Element*;
  Page keys[kSplitPages], values[kSplitPages];
  size_t count, dim;
  Page next[2];  // what is read after them; or nullptr

  // In the order in which they are read.
  Page page(size_t i) const { return i < count ? keys[i] : i < 2 * count ? values[i - count] : next[i - 2 * count]; }
  // From a page to what is asked for with it, the page after the next one: a page alone takes less time than memory to
  // answer. 0: nothing.
  ptrdiff_t after_keys(size_t i) const { return ahead(i); }
  ptrdiff_t after_values(size_t i) const { return ahead(count + i); }

 private:
  ptrdiff_t ahead(size_t i) const {
    const void *from = page(i), *to = page(i + 2);
    return to ? static_cast<const char*>(to) - static_cast<const char*>(from) : 0;
  }
};

// Scores of all rows, by vectors.
template <class S>
void score_pages(const SplitPages<S>& pages, const float* queries, size_t rows, float* scores) {
  for (size_t i = 0; i < pages.count; ++i) {
    each_rows(rows, [&]<int R>(size_t r) {
      for (size_t j = 0; j < Pages::kTokens; j += kRowTiles * kLanes) {
        score<S, R, kRowTiles>(queries + r * pages.dim, pages.dim, pages.keys[i] + j * pages.dim,
                               r ? 0 : pages.after_keys(i), scores + r * kScoreStride + i * Pages::kTokens + j);
      }
    });
  }
}

// out = weights . values, by vectors.
template <class S>
void weigh_pages(const SplitPages<S>& pages, const float* weights, size_t rows, float* out) {
  const size_t dim = pages.dim;
  std::memset(out, 0, rows * dim * sizeof(float));
  for (size_t i = 0; i < pages.count; ++i) {
    each_rows(rows, [&]<int R>(size_t r) {
      const float* w = weights + r * kScoreStride + i * Pages::kTokens;
      const ptrdiff_t ahead = r ? 0 : pages.after_values(i);
      size_t d = 0;
      for (; dim - d >= kRowTiles * kLanes; d += kRowTiles * kLanes) {
        add_values<S, R, kRowTiles>(w, pages.values[i] + d * Pages::kTokens, ahead, out + r * dim + d, dim);
      }
      if (d < dim) add_values<S, R, 1>(w, pages.values[i] + d * Pages::kTokens, ahead, out + r * dim + d, dim);
    });
  }
}

#if defined(INGOT_ISA_amx)
// Keys or values of a split in bf16: its pages from `first` on, and the two that are read after them, or nullptr.
struct TilePages {
  const uint16_t* pages[kSplitPages + 2];
  size_t count, dim;

  TilePages(const SplitPages<Bf16State>& split, size_t first, uint16_t*) : count(split.count), dim(split.dim) {
    for (size_t i = 0; i < count + 2; ++i) pages[i] = split.page(first + i);
  }
  // int8 elements are converted into `wide`.
  TilePages(const SplitPages<Int8State>& split, size_t first, uint16_t* wide) : count(split.count), dim(split.dim) {
    constexpr size_t kLine = 64;
    const size_t elements = Pages::kTokens * dim;
    for (size_t i = 0; i < count; ++i, wide += elements) {
      const int8_t *from = split.page(first + i), *ahead = split.page(first + i + 1);
      for (size_t e = 0; e < elements; e += 2 * kLanes) {
        if (ahead && e % kLine == 0) prefetch<kIntoL2>(ahead + e);
        store_pairs(wide + e, load_even(from + e), load_odd(from + e));
      }
      pages[i] = wide;
    }
    pages[count] = pages[count + 1] = nullptr;
  }
};

// As score_pages and weigh_pages, on tiles. More than 16 rows are read, and their scores written, up to a multiple of 16;
// queries are `stride` apart, weights two bytes each.
inline void tile_score_pages(const TilePages& keys, const uint16_t* queries, size_t stride, size_t rows,
                             float* scores) {
  for (size_t i = 0; i < keys.count; ++i) {
    for (size_t r = 0; r < rows; r += 2 * kLanes) {
      const auto block = rows - r > kLanes ? tile_scores<2> : tile_scores<1>;
      block(queries + r * stride, stride, keys.pages + i, r == 0, keys.dim,
            scores + r * kScoreStride + i * Pages::kTokens, kScoreStride);
    }
  }
}

inline void tile_weigh_pages(const TilePages& values, const float* weights, size_t rows, float* out) {
  const uint16_t* packed = reinterpret_cast<const uint16_t*>(weights);
  const size_t dim = values.dim;
  constexpr size_t kStride = 2 * kScoreStride, kTile = kLanes * kLanes;
  for (size_t r = 0; r < rows; r += 2 * kLanes) {
    const bool two = rows - r > kLanes;
    for (size_t d = 0, tiles; d < dim; d += tiles * kLanes) {
      const size_t left = (dim - d) / kLanes;
      tiles = !two && left >= 4 ? 4 : left >= 2 ? 2 : 1;
      const auto block = two ? (tiles == 2 ? tile_outputs<2, 2> : tile_outputs<2, 1>)
                             : (tiles == 4 ? tile_outputs<1, 4> : tiles == 2 ? tile_outputs<1, 2> : tile_outputs<1, 1>);
      alignas(64) float sums[4 * kTile];
      block(packed + r * kStride, kStride, values.pages, d, values.count, sums);
      for (size_t i = 0; i < 2 * kLanes && r + i < rows; ++i)
        for (size_t t = 0; t < tiles; ++t) {
          const float* tile = sums + (two ? i / kLanes * 2 + t : t) * kTile;
          store(out + (r + i) * dim + d + t * kLanes, load(tile + i % kLanes * kLanes));
        }
    }
  }
}
#endif

}  // namespace ingot::cpu::INGOT_ISA::paged

// Scores and outputs of a bf16 state on AMX tiles, in blocks of up to 32 rows. Keys and values are read as they lie.
#pragma once
#include "attention_state.h"
#include "parallel.h"
#include "prefetch.h"
#include "tiles.h"

namespace ingot::cpu::INGOT_ISA::paged {

#if defined(INGOT_ISA_amx)
inline constexpr bool kHasTiles = true;
using OwnTiles = TileLease;

// Elements [first, first + count) of the next page into L1, and of the one after it into L2, unless they are nullptr.
inline void prefetch_pages(const uint16_t* const* page, size_t first, size_t count) {
  for (size_t i = first; page[1] && i < first + count; i += 32) prefetch<kIntoL1>(page[1] + i);
  for (size_t i = first; page[2] && i < first + count; i += 32) prefetch<kIntoL2>(page[2] + i);
}

// Scores of R x 16 queries against the 32 positions of a page. Tiles 0-3 hold sums, 4-5 queries, 6-7 keys. The last
// block of a head that 32 does not divide starts early; its queries have zeros there. `next`, if any, is what is read
// after.
template <int R>
void tile_scores(const uint16_t* queries, size_t query_stride, const uint16_t* const* page, bool ahead, size_t dim,
                 float* scores, size_t score_stride) {
  const uint16_t* keys = *page;
  if (ahead) prefetch_pages(page, 0, Pages::kTokens * dim);
  asm volatile("" ::: "memory");  // the loads below do not say that they read
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (R > 1) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (size_t d = 0; d < dim; d += 32) {
    const uint16_t* k = keys + (d + 32 <= dim ? d : dim - 32) * kLanes;
    _tile_loadd(4, queries + d, query_stride * 2);
    _tile_loadd(6, k, 64);
    _tile_loadd(7, k + dim * kLanes, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (R > 1) {
      _tile_loadd(5, queries + kLanes * query_stride + d, query_stride * 2);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, scores, score_stride * 4);
  _tile_stored(1, scores + kLanes, score_stride * 4);
  if constexpr (R > 1) {
    _tile_stored(2, scores + kLanes * score_stride, score_stride * 4);
    _tile_stored(3, scores + kLanes * score_stride + kLanes, score_stride * 4);
  }
  asm volatile("" ::: "memory");
}

// T x 16 elements of R x 16 outputs over all pages of a split, to (R, T) tiles. Tiles 0-3 hold sums, 4-5 weights, 6
// values.
template <int R, int T>
void tile_outputs(const uint16_t* weights, size_t weight_stride, const uint16_t* const* values, size_t column,
                  size_t pages, float* out) {
  static_assert(R * T <= 4);
  constexpr size_t kTile = Pages::kTokens * kLanes;
  asm volatile("" ::: "memory");
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (size_t i = 0; i < pages; ++i) {
    const uint16_t *w = weights + i * Pages::kTokens, *v = values[i] + column * Pages::kTokens;
    prefetch_pages(values + i, column * Pages::kTokens, T * kTile);
    _tile_loadd(4, w, weight_stride * 2);
    if constexpr (R > 1) _tile_loadd(5, w + kLanes * weight_stride, weight_stride * 2);
    _tile_loadd(6, v, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (R > 1) _tile_dpbf16ps(2, 5, 6);
    if constexpr (T > 1) {
      _tile_loadd(7, v + kTile, 64);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (R > 1) _tile_dpbf16ps(3, 5, 7);
    }
    if constexpr (T > 2) {
      _tile_loadd(6, v + 2 * kTile, 64);
      _tile_dpbf16ps(2, 4, 6);
      _tile_loadd(7, v + 3 * kTile, 64);
      _tile_dpbf16ps(3, 4, 7);
    }
  }
  _tile_stored(0, out, 64);
  _tile_stored(1, out + kLanes * kLanes, 64);
  _tile_stored(2, out + 2 * kLanes * kLanes, 64);
  _tile_stored(3, out + 3 * kLanes * kLanes, 64);
  asm volatile("" ::: "memory");
}
#else
inline constexpr bool kHasTiles = false;
using OwnTiles = None;
#endif

}  // namespace ingot::cpu::INGOT_ISA::paged

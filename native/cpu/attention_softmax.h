// Scores to weights, and the merging of splits.
#pragma once
#include "../gen/abi.h"
#include "math.h"

namespace ingot::cpu::INGOT_ISA::paged {

// 2^x for x <= 0, within 2 ulp; 2^0 is exactly 1, and 0 below the smallest normal number.
inline Vec exp2_negative(Vec x) {
  static constexpr float series[] = {1, 0.693147004f, 0.240222424f, 0.0555073358f, 0.00967151299f, 0.00132647261f};
  const Vec least = set(-126), magic = set(0x1.8p23f + 127);  // the sum's low bits are the exponent of 2^n
  const Vec y = max(least, x), biased = y + magic, n = biased - magic;
  return if_less(x, least, zero(), polynomial(y - n, series) * shift_left_23(biased));
}

// To 8 bits of mantissa, as bf16 has, for |x| < 2^100 (Veltkamp, 1968).
inline Vec round_weight(Vec x) {
  const Vec c = x * set(0x1p16f + 1);
  return c - (c - x);
}

// The soft-max of one row over one split, unnormalised: weights are 2^(score log2(e) - most), `total` is their sum.
// A row that sees nothing of the split has total 0.
struct Softmax { float most, total; };

// Scales of a split's positions, where its state has them; those of values are 0 where there is no position.
struct Scales { const float *keys, *values; };

// Rows that see the same positions and are softened together, so that one hides what another waits for: as many as
// registers of 512 bits hold.
inline constexpr size_t kSoftRows = kParts == 1 ? 4 : 1;

// Turns `count` (a multiple of 32) raw scores of each of R rows into weights, in place; those outside [begin, end)
// become exactly 0. Weights over S's values are rounded to bf16 before they are summed; but where values have scales,
// these are multiplied in before the rounding and after the sum. Packs: into the first half of a row's bytes, as bf16.
template <class S, bool Packs, size_t R>
void soften(const op::attention::Params& p, const Scales& scales, float* scores, size_t stride, size_t count,
            size_t begin, size_t end, Softmax* results) {
  const auto put = [&](size_t r, size_t v, Vec w) {
    float* row = scores + r * stride;
    if constexpr (Packs) store_high(reinterpret_cast<uint16_t*>(row) + v * kLanes, w);
    else store(row + v * kLanes, w);
  };
  const auto put_zeros = [&](size_t from, size_t to) {
    for (size_t r = 0; r < R; ++r)
      for (size_t v = from; v < to; ++v) put(r, v, zero());
  };
  const size_t vectors = count / kLanes, first = begin < end ? begin / kLanes : vectors;
  const size_t last = begin < end ? (end - 1) / kLanes : vectors;
  const Vec scale = set(p.softcap > 0 ? p.scale : p.scale * 1.44269504f);
  Vec most[R], peak[R], total[R];
  for (size_t r = 0; r < R; ++r) most[r] = set(-kInfinity), total[r] = zero();
  for (size_t v = first; v <= last && v < vectors; ++v) {
#pragma GCC unroll 4
    for (size_t r = 0; r < R; ++r) {
      float* at = scores + r * stride + v * kLanes;
      Vec s = load(at);
      if constexpr (S::kScaled) s = s * load(scales.keys + v * kLanes);
      s = s * scale;
      if (p.softcap > 0) s = softcap(s, p.softcap) * set(1.44269504f);
      if (v == first || v == last) {
        const Vec index = lane_index() + set(float(v * kLanes));
        s = if_less(index, set(float(end)), s, set(-kInfinity));
        s = if_less(index, set(float(begin)), set(-kInfinity), s);
      }
      most[r] = max(most[r], s);
      store(at, s);
    }
  }
  for (size_t r = 0; r < R; ++r) peak[r] = set(results[r].most = reduce_max(most[r]));
  put_zeros(0, first);
  for (size_t v = first; v <= last && v < vectors; ++v) {
#pragma GCC unroll 4
    for (size_t r = 0; r < R; ++r) {
      const Vec e = exp2_negative(load(scores + r * stride + v * kLanes) - peak[r]);
      Vec w = e;
      if constexpr (S::kScaled) w = w * load(scales.values + v * kLanes);
      if constexpr (S::kRounds) w = round_weight(w);
      total[r] = total[r] + (S::kScaled ? e : w);
      put(r, v, w);
    }
  }
  put_zeros(last + 1, vectors);
  for (size_t r = 0; r < R; ++r) results[r].total = reduce_add(total[r]);
}

// What some rows have summed up so far: soft-max and weighted values, (rows) and (rows, dim).
struct Partial {
  Softmax* softmax;
  float* sum;

  static size_t floats(size_t rows, size_t dim) { return rows * (2 + dim); }
  Partial(float* memory, size_t rows) : softmax(reinterpret_cast<Softmax*>(memory)), sum(memory + 2 * rows) {}

  // Adds a later split. Splits are merged in order of their positions, two at a time, so that the result does not
  // depend on who computed them.
  void merge(const Partial& later, size_t rows, size_t dim) const {
    for (size_t r = 0; r < rows; ++r) {
      Softmax &a = softmax[r], &b = later.softmax[r];
      if (b.total == 0) continue;
      float *to = sum + r * dim, *from = later.sum + r * dim;
      if (a.total == 0) {
        a = b;
        std::memcpy(to, from, dim * sizeof(float));
        continue;
      }
      const float most = a.most > b.most ? a.most : b.most;
      const Vec mine = exp2_negative(set(a.most - most)), other = exp2_negative(set(b.most - most));
      a = {most, fma(set(b.total), other, set(a.total) * mine).p[0][0]};
      for (size_t d = 0; d < dim; d += kLanes) store(to + d, fma(load(from + d), other, load(to + d) * mine));
    }
  }
};

}  // namespace ingot::cpu::INGOT_ISA::paged

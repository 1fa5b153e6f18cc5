// Keys and values in pages of 32 positions, and what kernels read of them, by the dtype of the state.
//
// In a page, the keys of a head are a matrix (32 positions, head_dim), and its values one of (head_dim, 32 positions),
// both as a product takes a weight of that dtype (abi/layouts.ts): tiles of 16 rows, whose columns (f32, f16) or pairs
// of columns (bf16) follow each other, 16 lanes each. So lanes are positions in a score and elements of the head in an
// output, no sum runs across lanes, and a tile is what one AMX instruction multiplies. int8 elements lie as bf16 ones
// do, which hold them exactly; the scales of all keys and values follow behind.
#pragma once
#include "../core/kernel.h"
#include "simd.h"

namespace ingot::cpu::INGOT_ISA::paged {

// Pack elements of one lane lie side by side; a sum takes its elements in pairs, the even and the odd apart.
template <class T, size_t Pack>
struct StateElements {
  using Element = T;
  static constexpr size_t kPack = Pack;
  static constexpr size_t index(size_t lane, size_t k) { return (k / Pack * kLanes + lane) * Pack + k % Pack; }
};

struct F32State : StateElements<float, 1> {
  static constexpr bool kRounds = false, kScaled = false;
  static Vec even(const float* tile, size_t pair) { return load(tile + pair * 2 * kLanes); }
  static Vec odd(const float* tile, size_t pair) { return load(tile + (pair * 2 + 1) * kLanes); }
  static Vec sum(Vec a, Vec b, Vec c) { return fma(a, b, c); }
  static void convert(float* to, Vec v) { store(to, v); }
};
struct F16State : StateElements<uint16_t, 1> {
  static constexpr bool kRounds = false, kScaled = false;
  static Vec even(const uint16_t* tile, size_t pair) { return load_f16(tile + pair * 2 * kLanes); }
  static Vec odd(const uint16_t* tile, size_t pair) { return load_f16(tile + (pair * 2 + 1) * kLanes); }
  static Vec sum(Vec a, Vec b, Vec c) { return fma(a, b, c); }
  static void convert(uint16_t* to, Vec v) { store_f16(to, v); }
};
// Queries and weights are rounded to bf16 too, so that every product is exact.
struct Bf16State : StateElements<uint16_t, 2> {
  static constexpr bool kRounds = true, kScaled = false;
  static Vec even(const uint16_t* tile, size_t pair) { return load_even(tile + pair * 2 * kLanes); }
  static Vec odd(const uint16_t* tile, size_t pair) { return load_odd(tile + pair * 2 * kLanes); }
  static Vec sum(Vec a, Vec b, Vec c) { return fma_exact(a, b, c); }
  static void convert(uint16_t* to, Vec v) { store_bf16(to, v); }
};
struct Int8State : StateElements<int8_t, 2> {
  static constexpr bool kRounds = true, kScaled = true;
  static Vec even(const int8_t* tile, size_t pair) { return load_even(tile + pair * 2 * kLanes); }
  static Vec odd(const int8_t* tile, size_t pair) { return load_odd(tile + pair * 2 * kLanes); }
  static Vec sum(Vec a, Vec b, Vec c) { return fma_exact(a, b, c); }
  // To the nearest integer of magnitude up to 127.
  static void convert(int8_t* to, Vec v) {
    const Vec low = max(v, set(-127));
    const Ints rounded = round_int(if_less(low, set(127), low, set(127)));
    int32_t values[kLanes];
    std::memcpy(values, &rounded, sizeof rounded);
    for (size_t i = 0; i < kLanes; ++i) to[i] = int8_t(values[i]);
  }
};

// Calls f with the type that describes a state of `dtype`.
template <class F>
void with_state(DType dtype, const F& f) {
  if (dtype == DType::f32) f.template operator()<F32State>();
  else if (dtype == DType::f16) f.template operator()<F16State>();
  else if (dtype == DType::i8) f.template operator()<Int8State>();
  else f.template operator()<Bf16State>();
}

// The pages of a call: of the state, or of this step's keys only, in scratch.
struct Pages {
  State state = {};
  const Step* step = nullptr;
  size_t kv_heads = 0, dim = 0;  // dim is head_dim, padded to 16
  bool paged = false;

  static constexpr size_t kTokens = kBlockTokens;
  size_t head_elements() const { return kTokens * dim; }
  std::byte* page(size_t sequence, size_t block) const {
    // Without a block table, a sequence starts where no earlier one can end.
    const size_t unit = paged ? size_t(step->block_table[sequence * step->blocks_per_sequence + block])
                              : size_t(step->sequence_start[sequence]) / kTokens + sequence + block;
    return state.base + unit * state.size;
  }
  template <class S>
  typename S::Element* keys(size_t sequence, size_t block, size_t head) const {
    return reinterpret_cast<typename S::Element*>(page(sequence, block)) + head * head_elements();
  }
  template <class S>
  typename S::Element* values(size_t sequence, size_t block, size_t head) const {
    return keys<S>(sequence, block, kv_heads + head);
  }

  // Scales of a page's 32 positions.
  float* key_scales(size_t sequence, size_t block, size_t head) const {
    return reinterpret_cast<float*>(page(sequence, block) + 2 * kv_heads * head_elements()) + head * kTokens;
  }
  float* value_scales(size_t sequence, size_t block, size_t head) const {
    return key_scales(sequence, block, kv_heads + head);
  }

  // Writes key and value of one position, `dim` elements each, which it may change. `row` has room for as many of the
  // state's elements.
  template <class S>
  void append(size_t sequence, size_t position, size_t head, float* key, float* value, float* row) const {
    using Element = typename S::Element;
    const size_t block = position / kTokens, at = position % kTokens, lane = at % kLanes;
    if constexpr (S::kScaled) {
      key_scales(sequence, block, head)[at] = scale(key);
      value_scales(sequence, block, head)[at] = scale(value);
    }
    Element* elements = reinterpret_cast<Element*>(row);
    Element* to = keys<S>(sequence, block, head) + at / kLanes * kLanes * dim;
    for (size_t i = 0; i < dim; i += kLanes) S::convert(elements + i, load(key + i));
    for (size_t i = 0; i < dim; i += S::kPack) {
      std::memcpy(to + S::index(lane, i), elements + i, S::kPack * sizeof(Element));
    }
    to = values<S>(sequence, block, head);
    for (size_t i = 0; i < dim; i += kLanes, to += kTokens * kLanes) {
      S::convert(elements, load(value + i));
      for (size_t j = 0; j < kLanes; ++j) to[S::index(j, at)] = elements[j];
    }
  }

  // A head's values of one page, of which `present` positions exist, with zeros for the rest.
  template <class S>
  void copy_present(const typename S::Element* from, size_t present, typename S::Element* to) const {
    const size_t whole = present / S::kPack * S::kPack, tile = kTokens * kLanes;
    for (size_t d = 0; d < dim; d += kLanes, from += tile, to += tile) {
      std::memcpy(to, from, whole * kLanes * sizeof *to);
      std::memset(to + whole * kLanes, 0, (tile - whole * kLanes) * sizeof *to);
      for (size_t k = whole; k < present; ++k)
        for (size_t j = 0; j < kLanes; ++j) to[S::index(j, k)] = from[S::index(j, k)];
    }
  }

 private:
  // Scales a head to magnitudes up to 127; returns what takes it back: NaN where an element is NaN or infinite.
  float scale(float* x) const {
    Vec magnitudes = zero(), none = zero();
    for (size_t i = 0; i < dim; i += kLanes) {
      const Vec v = load(x + i);
      magnitudes = max(magnitudes, abs(v));
      none = none + (v - v);
    }
    const float most = reduce_max(magnitudes);
    const Vec inverse = set(most == 0 ? 0.0f : 127.0f / most);
    for (size_t i = 0; i < dim; i += kLanes) store(x + i, load(x + i) * inverse);
    return most / 127.0f + reduce_add(none);
  }
};

}  // namespace ingot::cpu::INGOT_ISA::paged

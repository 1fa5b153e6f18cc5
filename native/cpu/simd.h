// Sixteen f32 lanes, and the operations kernels are written in: one 512-bit register, two of 256 bits or four of 128.
// Every operation gives the same bits in each form, so a kernel gives the same bits on every instruction set.
// Reductions over lanes are one tree: i with i + 8, then + 4, + 2, + 1. Plain operators are GNU vector arithmetic.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#if !defined(INGOT_ISA_portable)
// GCC 12 warns of its own deliberately undefined registers.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace ingot::cpu::INGOT_ISA {

#if defined(INGOT_ISA_portable)
inline constexpr int kParts = 4;
#elif defined(INGOT_ISA_avx2)
inline constexpr int kParts = 2;
#else
inline constexpr int kParts = 1;
#endif

inline constexpr size_t kLanes = 16;
inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

typedef float Part __attribute__((vector_size(64 / kParts)));
typedef int32_t IntPart __attribute__((vector_size(64 / kParts)));
typedef uint32_t BitPart __attribute__((vector_size(64 / kParts)));
typedef uint16_t HalfPart __attribute__((vector_size(32 / kParts)));

struct Vec { Part p[kParts]; };
struct Ints { IntPart p[kParts]; };

// ---- one part ----

inline Part part_set(float x) {
#if defined(INGOT_ISA_portable)
  return Part{x, x, x, x};
#elif defined(INGOT_ISA_avx2)
  return _mm256_set1_ps(x);
#else
  return _mm512_set1_ps(x);
#endif
}

inline Part part_max(Part a, Part b) {
#if defined(INGOT_ISA_portable)
  return a > b ? a : b;
#elif defined(INGOT_ISA_avx2)
  return _mm256_max_ps(a, b);
#else
  return _mm512_max_ps(a, b);
#endif
}

#if defined(INGOT_ISA_portable) && !defined(FP_FAST_FMAF)
// A fused product and sum without the instruction: the product is exact in f64, the sum is rounded to odd, and rounding
// that to f32 is then correct (Boldo and Melquiond, 2008).
inline Part part_fma(Part a, Part b, Part c) {
  typedef double Wide __attribute__((vector_size(32)));
  typedef int64_t WideBits __attribute__((vector_size(32)));
  const Wide product = __builtin_convertvector(a, Wide) * __builtin_convertvector(b, Wide);
  const Wide addend = __builtin_convertvector(c, Wide);
  const Wide sum = product + addend, t = sum - product;
  const Wide error = (product - (sum - t)) + (addend - t);
  const WideBits inexact = (error > 0) | (error < 0), outward = (error > 0) == (sum > 0);
  const WideBits even = ((WideBits)sum & 1) == 0;
  const WideBits odd = (WideBits)sum + ((outward & 2) - 1);
  const WideBits bits = (inexact & even) ? odd : (WideBits)sum;
  return __builtin_convertvector((Wide)bits, Part);
}
#elif defined(INGOT_ISA_portable)
inline Part part_fma(Part a, Part b, Part c) {
  Part r;
  for (int i = 0; i < 4; ++i) r[i] = std::fma(a[i], b[i], c[i]);
  return r;
}
#elif defined(INGOT_ISA_avx2)
inline Part part_fma(Part a, Part b, Part c) { return _mm256_fmadd_ps(a, b, c); }
#else
inline Part part_fma(Part a, Part b, Part c) { return _mm512_fmadd_ps(a, b, c); }
#endif

// ---- whole vectors ----

#define INGOT_EACH(expression)                  \
  Vec r;                                        \
  for (int i = 0; i < kParts; ++i) r.p[i] = expression; \
  return r
#define INGOT_EACH_INT(expression)              \
  Ints r;                                       \
  for (int i = 0; i < kParts; ++i) r.p[i] = expression; \
  return r

inline Vec set(float x) { INGOT_EACH(part_set(x)); }
inline Vec zero() { return set(0.0f); }
inline Vec operator+(Vec a, Vec b) { INGOT_EACH(a.p[i] + b.p[i]); }
inline Vec operator-(Vec a, Vec b) { INGOT_EACH(a.p[i] - b.p[i]); }
inline Vec operator*(Vec a, Vec b) { INGOT_EACH(a.p[i] * b.p[i]); }
inline Vec operator/(Vec a, Vec b) { INGOT_EACH(a.p[i] / b.p[i]); }
// a > b ? a : b, so that a NaN in b is kept and one in a is not.
inline Vec max(Vec a, Vec b) { INGOT_EACH(part_max(a.p[i], b.p[i])); }
// a * b + c, rounded once.
inline Vec fma(Vec a, Vec b, Vec c) { INGOT_EACH(part_fma(a.p[i], b.p[i], c.p[i])); }
// a < b ? x : y
inline Vec if_less(Vec a, Vec b, Vec x, Vec y) { INGOT_EACH(a.p[i] < b.p[i] ? x.p[i] : y.p[i]); }
inline Vec abs(Vec a) { INGOT_EACH((Part)((BitPart)a.p[i] & 0x7fffffffu)); }
inline Vec shift_left_23(Vec a) { INGOT_EACH((Part)((BitPart)a.p[i] << 23)); }

// a * b + c where a * b is exact in f32, as a product of two bf16 is: one rounding, with or without the instruction.
// (Only a product below 2^-126, which the portable form flushes first, could tell the two apart.)
inline Vec fma_exact(Vec a, Vec b, Vec c) {
#if defined(INGOT_ISA_portable) && !defined(FP_FAST_FMAF)
  return a * b + c;
#else
  return fma(a, b, c);
#endif
}

// To bf16, ties to even, kept as f32; NaN becomes the quiet NaN.
inline Vec round_bf16(Vec a) {
  Vec r;
  for (int i = 0; i < kParts; ++i) {
    const BitPart bits = (BitPart)a.p[i];
    const BitPart rounded = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
    const BitPart nan = (bits & 0x80000000u) | 0x7fc00000u;
    r.p[i] = (Part)(a.p[i] == a.p[i] ? rounded : nan);
  }
  return r;
}

// ---- memory ----

template <class T>
inline T peek(const void* p) {
  T t;
  std::memcpy(&t, p, sizeof t);
  return t;
}

template <class To, class From>
inline To as(From from) { return peek<To>(&from); }

inline Vec load(const float* p) {
  Vec r;
  for (int i = 0; i < kParts; ++i) r.p[i] = peek<Part>(p + i * 16 / kParts);
  return r;
}
inline void store(float* p, Vec v) {
  for (int i = 0; i < kParts; ++i) std::memcpy(p + i * 16 / kParts, &v.p[i], sizeof(Part));
}

// The first n lanes, n in [1, 16]; the rest read as zero and are not written.
inline Vec load_n(const float* p, size_t n) {
  if (n == kLanes) return load(p);
#if defined(INGOT_ISA_portable) || defined(INGOT_ISA_avx2)
  float buffer[kLanes] = {};
  std::memcpy(buffer, p, n * sizeof(float));
  return load(buffer);
#else
  return {{_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p)}};
#endif
}
inline void store_n(float* p, Vec v, size_t n) {
  if (n == kLanes) return store(p, v);
#if defined(INGOT_ISA_portable) || defined(INGOT_ISA_avx2)
  float buffer[kLanes];
  store(buffer, v);
  std::memcpy(p, buffer, n * sizeof(float));
#else
  _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), v.p[0]);
#endif
}

// Sixteen pairs of bf16: the first of each, and the second.
inline Vec load_even(const uint16_t* p) {
  Vec r;
  for (int i = 0; i < kParts; ++i) r.p[i] = (Part)(peek<BitPart>(p + i * 32 / kParts) << 16);
  return r;
}
inline Vec load_odd(const uint16_t* p) {
  Vec r;
  for (int i = 0; i < kParts; ++i) r.p[i] = (Part)(peek<BitPart>(p + i * 32 / kParts) & 0xffff0000u);
  return r;
}

// Integers widened and narrowed by instruction: GCC 12 takes a convertvector between these widths apart.
#if defined(INGOT_ISA_portable)
typedef int16_t ShortPart __attribute__((vector_size(32 / kParts)));
inline BitPart widen(const uint16_t* p) { return __builtin_convertvector(peek<HalfPart>(p), BitPart); }
inline void narrow(uint16_t* p, BitPart v) {
  const HalfPart half = __builtin_convertvector(v, HalfPart);
  std::memcpy(p, &half, sizeof half);
}
inline IntPart widen_pairs(const int8_t* p) { return __builtin_convertvector((ShortPart)peek<HalfPart>(p), IntPart); }
inline IntPart widen(const int8_t* p) { return IntPart{p[0], p[1], p[2], p[3]}; }
inline void narrow(int8_t* p, IntPart v) {
  for (int i = 0; i < 4; ++i) p[i] = int8_t(v[i]);
}
#elif defined(INGOT_ISA_avx2)
inline BitPart widen(const uint16_t* p) {
  return (BitPart)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline void narrow(uint16_t* p, BitPart v) {
  const __m256i packed = _mm256_packus_epi32((__m256i)v, (__m256i)v);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 8)));
}
inline IntPart widen_pairs(const int8_t* p) {
  return (IntPart)_mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline IntPart widen(const int8_t* p) {
  return (IntPart)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
inline void narrow(int8_t* p, IntPart v) {
  const __m128i low = _mm256_castsi256_si128((__m256i)v), high = _mm256_extracti128_si256((__m256i)v, 1);
  const __m128i shorts = _mm_packs_epi32(low, high);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(shorts, shorts));
}
#else
inline BitPart widen(const uint16_t* p) {
  return (BitPart)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void narrow(uint16_t* p, BitPart v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16((__m512i)v));
}
inline IntPart widen_pairs(const int8_t* p) {
  return (IntPart)_mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline IntPart widen(const int8_t* p) {
  return (IntPart)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline void narrow(int8_t* p, IntPart v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8((__m512i)v));
}
#endif

inline Vec load_bf16(const uint16_t* p) { INGOT_EACH((Part)(widen(p + i * 16 / kParts) << 16)); }
inline void store_bf16(uint16_t* p, Vec v) {
  const Vec rounded = round_bf16(v);
  for (int i = 0; i < kParts; ++i) narrow(p + i * 16 / kParts, (BitPart)rounded.p[i] >> 16);
}

// IEEE binary16, one at a time: what F16C computes.
inline float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
  if (exponent == 0) {
    const float magnitude = float(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  if (exponent == 31) return as<float>(sign | 0x7f800000 | mantissa << 13 | (mantissa ? 0x400000u : 0));
  return as<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}
inline uint16_t float_to_half(float f) {
  const uint32_t bits = as<uint32_t>(f), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00 | (magnitude >> 13 & 0x1ff));
  if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);
  if (magnitude < 0x38800000) {
    const float shifted = as<float>(magnitude) + 0.5f;  // rounds at 2^-24, the step of subnormals
    return uint16_t(sign | (as<uint32_t>(shifted) - 0x3f000000));
  }
  const uint32_t rounded = (magnitude + 0xfff + (magnitude >> 13 & 1)) >> 13;
  return uint16_t(sign | (rounded - (112 << 10)));
}

inline Vec load_f16(const uint16_t* p) {
  Vec r;
#if defined(INGOT_ISA_portable)
  for (size_t i = 0; i < kLanes; ++i) r.p[i / 4][i % 4] = half_to_float(p[i]);
#elif defined(INGOT_ISA_avx2)
  for (int i = 0; i < 2; ++i) r.p[i] = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i * 8)));
#else
  r.p[0] = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#endif
  return r;
}
inline void store_f16(uint16_t* p, Vec v) {
#if defined(INGOT_ISA_portable)
  for (size_t i = 0; i < kLanes; ++i) p[i] = float_to_half(v.p[i / 4][i % 4]);
#elif defined(INGOT_ISA_avx2)
  for (int i = 0; i < 2; ++i) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + i * 8), _mm256_cvtps_ph(v.p[i], _MM_FROUND_TO_NEAREST_INT));
  }
#else
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v.p[0], _MM_FROUND_TO_NEAREST_INT));
#endif
}

// 0, 1, .. 15
inline Vec lane_index() {
  static constexpr float index[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return load(index);
}

// ---- reductions ----

typedef float Quarter __attribute__((vector_size(16)));

template <class Op>
inline float reduce(Vec v, Op op) {
#if defined(INGOT_ISA_portable)
  const Quarter q = op(op(v.p[0], v.p[2]), op(v.p[1], v.p[3]));
#else
#if defined(INGOT_ISA_avx2)
  const __m256 half = op(v.p[0], v.p[1]);
#else
  const __m256 half = op(_mm512_castps512_ps256(v.p[0]), _mm512_extractf32x8_ps(v.p[0], 1));
#endif
  const Quarter q = op(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#endif
  return op(op(q[0], q[2]), op(q[1], q[3]));
}
inline float reduce_add(Vec v) { return reduce(v, [](auto a, auto b) { return a + b; }); }
inline float reduce_max(Vec v) { return reduce(v, [](auto a, auto b) { return a > b ? a : b; }); }

// How many sums a kernel keeps at once before it reduces them: what registers hold.
inline constexpr size_t kSums = kParts == 1 ? 16 : 4;
// to[i] = reduce_add(v[i])
inline void store_sums(float* to, const Vec (&v)[kSums]) {
#if defined(INGOT_ISA_portable) || defined(INGOT_ISA_avx2)
  for (size_t i = 0; i < kSums; ++i) to[i] = reduce_add(v[i]);
#else
  // Each stage adds halves of two vectors and keeps both sums; inputs in bit-reversed order leave lane i at i.
  static constexpr int reversed[8] = {0, 2, 1, 3, 8, 10, 9, 11};
  __m512 a[8], b[4], c[2];
  for (int i = 0; i < 8; ++i) {
    const __m512 x = v[reversed[i]].p[0], y = v[reversed[i] + 4].p[0];
    a[i] = _mm512_shuffle_f32x4(x, y, 0x44) + _mm512_shuffle_f32x4(x, y, 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    b[i] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0x88) + _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd);
  }
  for (int i = 0; i < 2; ++i) c[i] = _mm512_shuffle_ps(b[i], b[i + 2], 0x44) + _mm512_shuffle_ps(b[i], b[i + 2], 0xee);
  store(to, {{_mm512_shuffle_ps(c[0], c[1], 0x88) + _mm512_shuffle_ps(c[0], c[1], 0xdd)}});
#endif
}

// ---- integer dot products: lane n sums four products of its own weights with four activations ----
//
// int4 weights lie as two quads in the halves of each lane's four bytes; half 0 or 1 is taken as value + 8, unsigned, so
// a sum starts at -8 x the activations. `kUses` products read the same activations.
inline constexpr int32_t kNibbleOffset = 8;
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
// The instruction takes unsigned times signed: weights are offset by 128, and a sum starts at -128 x the activations.
inline constexpr int32_t kQuadOffset = 128;
#else
inline constexpr int32_t kQuadOffset = 0;
#endif

#if defined(__AVX512VNNI__)
struct Quads { __m512i w; };
inline Quads load_quads(const int8_t* p) { return {_mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(-128))}; }
template <int Half>
inline Quads load_nibbles(const uint8_t* p) {
  const __m512i biased = _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(-120));
  return {_mm512_and_si512(Half ? _mm512_srli_epi16(biased, 4) : biased, _mm512_set1_epi8(15))};
}
template <int kUses>
inline Ints dot(Ints sum, Quads w, const int8_t* activations) {
  if constexpr (kUses > 1)
    return {{(IntPart)_mm512_dpbusd_epi32((__m512i)sum.p[0], w.w, _mm512_set1_epi32(peek<int32_t>(activations)))}};
  // Of one use from memory, spelled out: GCC 12 broadcasts by an instruction of its own.
  typedef int8_t Four[4];
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum.p[0]) : "v"(w.w), "m"(*reinterpret_cast<const Four*>(activations)));
  return sum;
}
#elif defined(__AVXVNNI__)
struct Quads { __m256i w[2]; };
inline Quads load_quads(const int8_t* p) {
  Quads quads;
  for (int i = 0; i < 2; ++i) quads.w[i] = _mm256_xor_si256(peek<__m256i>(p + i * 32), _mm256_set1_epi8(-128));
  return quads;
}
template <int Half>
inline Quads load_nibbles(const uint8_t* p) {
  Quads quads;
  for (int i = 0; i < 2; ++i) {
    const __m256i biased = _mm256_xor_si256(peek<__m256i>(p + i * 32), _mm256_set1_epi8(-120));
    quads.w[i] = _mm256_and_si256(Half ? _mm256_srli_epi16(biased, 4) : biased, _mm256_set1_epi8(15));
  }
  return quads;
}
template <int>
inline Ints dot(Ints sum, Quads w, const int8_t* activations) {
  const __m256i a = _mm256_set1_epi32(peek<int32_t>(activations));
  for (int i = 0; i < 2; ++i) sum.p[i] = (IntPart)_mm256_dpbusd_avx_epi32((__m256i)sum.p[i], w.w[i], a);
  return sum;
}
#elif !defined(INGOT_ISA_portable)
struct Quads { __m256i w[2]; };
inline Quads load_quads(const int8_t* p) {
  const __m256i* q = reinterpret_cast<const __m256i*>(p);
  return {{_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)}};
}
struct Nibbles { __m256i w[2]; };
template <int Half>
inline Nibbles load_nibbles(const uint8_t* p) {
  Nibbles nibbles;
  for (int i = 0; i < 2; ++i) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p) + i);
    const __m256i biased = _mm256_xor_si256(bytes, _mm256_set1_epi8(-120));
    nibbles.w[i] = _mm256_and_si256(Half ? _mm256_srli_epi16(biased, 4) : biased, _mm256_set1_epi8(15));
  }
  return nibbles;
}
// |w| <= 128 times +-a <= 127, in pairs: at most 2 * 128 * 127, which 16 bits hold.
inline __m256i pair_sums(Quads w, int half, __m256i a) {
  return _mm256_maddubs_epi16(_mm256_abs_epi8(w.w[half]), _mm256_sign_epi8(a, w.w[half]));
}
inline __m256i pair_sums(Nibbles w, int half, __m256i a) { return _mm256_maddubs_epi16(w.w[half], a); }
template <int, class Weights>
inline Ints dot(Ints sum, Weights w, const int8_t* activations) {
  const __m256i a = _mm256_set1_epi32(peek<int32_t>(activations)), ones = _mm256_set1_epi16(1);
  const __m256i low = _mm256_madd_epi16(pair_sums(w, 0, a), ones), high = _mm256_madd_epi16(pair_sums(w, 1, a), ones);
#if defined(INGOT_ISA_avx2)
  return {{sum.p[0] + (IntPart)low, sum.p[1] + (IntPart)high}};
#else
  return {{sum.p[0] + (IntPart)_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)}};
#endif
}
#else
struct Quads {
  const int8_t* w;
  int32_t operator[](size_t i) const { return w[i]; }
};
template <int Half>
struct Nibbles {
  const uint8_t* w;
  int32_t operator[](size_t i) const { return (w[i] >> 4 * Half & 15) ^ 8; }
};
inline Quads load_quads(const int8_t* p) { return {p}; }
template <int Half>
inline Nibbles<Half> load_nibbles(const uint8_t* p) { return {p}; }
template <int, class Weights>
inline Ints dot(Ints sum, Weights w, const int8_t* activations) {
  int8_t a[4];
  std::memcpy(a, activations, 4);
  for (size_t n = 0; n < kLanes; ++n) {
    const size_t q = n * 4;
    sum.p[n / 4][n % 4] += w[q] * a[0] + w[q + 1] * a[1] + w[q + 2] * a[2] + w[q + 3] * a[3];
  }
  return sum;
}
#endif

// ---- int4 times a sub-scale ----

// Sixteen int8, widened.
inline Ints load_ints(const int8_t* p) { INGOT_EACH_INT(widen(p + i * 16 / kParts)); }
// sum + a * b for a and b in 16 bits.
inline Ints add_product16(Ints sum, Ints a, Ints b) {
#if defined(__AVX512VNNI__)
  return {{(IntPart)_mm512_dpwssd_epi32((__m512i)sum.p[0], (__m512i)a.p[0], (__m512i)(b.p[0] & 0xffff))}};
#elif defined(__AVXVNNI__)
  INGOT_EACH_INT((IntPart)_mm256_dpwssd_avx_epi32((__m256i)sum.p[i], (__m256i)a.p[i], (__m256i)(b.p[i] & 0xffff)));
#elif defined(INGOT_ISA_avx2)
  INGOT_EACH_INT(sum.p[i] + (IntPart)_mm256_madd_epi16((__m256i)a.p[i], (__m256i)(b.p[i] & 0xffff)));
#elif defined(INGOT_ISA_avx512)
  return {{sum.p[0] + (IntPart)_mm512_madd_epi16((__m512i)a.p[0], (__m512i)(b.p[0] & 0xffff))}};
#else
  INGOT_EACH_INT(sum.p[i] + a.p[i] * b.p[i]);
#endif
}

// Quads of int8 from quads of int4 in the layout tile16x8: each lane's values times its sub-scale.
class Int4Expander {
 public:
  // `sub_scales`: of 16 outputs, in [-15, 15].
  explicit Int4Expander(const int8_t* sub_scales) {
    const Ints v = load_ints(sub_scales);
    for (int i = 0; i < kParts; ++i) {
      const BitPart negative = (BitPart)(v.p[i] < 0), size = ((BitPart)v.p[i] ^ negative) - negative;
      bias_[i] = 0x88888888u ^ negative;
      factor_[i] = size | size << 16;
      const BitPart offset = (size << 3) - (size & negative);
      offset_[i] = (offset | offset << 8) * 0x10001u;
    }
  }
  // 64 bytes of nibbles to two quads of 16 outputs. Biased to 0..15 (negated first where the sub-scale is negative), a
  // nibble times 15 stays below 256: one product of 16 bits is two of a byte each, without a carry between them.
  void expand(const uint8_t* nibbles, int8_t* quads) const {
    typedef uint8_t BytePart __attribute__((vector_size(64 / kParts)));
    typedef uint16_t ShortPart __attribute__((vector_size(64 / kParts)));
    for (int i = 0; i < kParts; ++i) {
      const BitPart biased = peek<BitPart>(nibbles + i * 64 / kParts) ^ bias_[i];
      for (int half = 0; half < 2; ++half) {
        const BitPart n = (half ? biased >> 4 : biased) & 0x0f0f0f0fu;
        const BytePart scaled = (BytePart)((ShortPart)n * (ShortPart)factor_[i]) - (BytePart)offset_[i];
        std::memcpy(quads + half * 64 + i * 64 / kParts, &scaled, sizeof scaled);
      }
    }
  }

 private:
  BitPart bias_[kParts], factor_[kParts], offset_[kParts];
};

inline Ints set_int(int32_t x) {
  Ints r;
  for (int i = 0; i < kParts; ++i) r.p[i] = IntPart{} + x;
  return r;
}
// The values fit in 8 bits.
inline void store_i8(int8_t* p, Ints v) {
  for (int i = 0; i < kParts; ++i) narrow(p + i * 16 / kParts, v.p[i]);
}
inline Ints operator+(Ints a, Ints b) { INGOT_EACH_INT(a.p[i] + b.p[i]); }
inline Ints max(Ints a, Ints b) { INGOT_EACH_INT(a.p[i] > b.p[i] ? a.p[i] : b.p[i]); }
inline int32_t reduce_max(Ints v) {
#if defined(INGOT_ISA_portable) || defined(INGOT_ISA_avx2)
  int32_t most = v.p[0][0];
  for (const IntPart& part : v.p)
    for (size_t i = 0; i < kLanes / kParts; ++i) most = part[i] > most ? part[i] : most;
  return most;
#else
  return _mm512_reduce_max_epi32((__m512i)v.p[0]);
#endif
}
// |a| as its bits, which integers order as numbers; infinity comes last but for NaN.
inline Ints magnitude_bits(Vec a) { INGOT_EACH_INT((IntPart)a.p[i] & 0x7fffffff); }
inline int32_t reduce_add(Ints v) {
#if defined(INGOT_ISA_portable) || defined(INGOT_ISA_avx2)
  IntPart sum = v.p[0];
  for (int i = 1; i < kParts; ++i) sum += v.p[i];
  int32_t total = 0;
  for (size_t i = 0; i < kLanes / kParts; ++i) total += sum[i];
  return total;
#else
  return _mm512_reduce_add_epi32((__m512i)v.p[0]);
#endif
}
inline Vec to_float(Ints v) { INGOT_EACH(__builtin_convertvector(v.p[i], Part)); }

// To the nearest integer, ties to even, for |x| < 2^22; NaN gives some integer.
inline Ints round_int(Vec v) {
  Ints r;
  for (int i = 0; i < kParts; ++i) r.p[i] = (IntPart)(v.p[i] + part_set(0x1.8p23f)) - 0x4b400000;
  return r;
}

// Sixteen pairs of int8: the first of each, and the second.
inline Vec load_even(const int8_t* p) {
  Ints r;
  for (int i = 0; i < kParts; ++i) r.p[i] = (IntPart)((BitPart)widen_pairs(p + i * 32 / kParts) << 24) >> 24;
  return to_float(r);
}
inline Vec load_odd(const int8_t* p) {
  Ints r;
  for (int i = 0; i < kParts; ++i) r.p[i] = widen_pairs(p + i * 32 / kParts) >> 8;
  return to_float(r);
}

// Sixteen pairs of bf16 out of two vectors that need no rounding.
inline void store_pairs(uint16_t* p, Vec even, Vec odd) {
  for (int i = 0; i < kParts; ++i) {
    const BitPart pair = ((BitPart)even.p[i] >> 16) | ((BitPart)odd.p[i] & 0xffff0000u);
    std::memcpy(p + i * 32 / kParts, &pair, sizeof pair);
  }
}

// The upper halves: what store_bf16 writes where nothing needs rounding.
inline void store_high(uint16_t* p, Vec v) {
  for (int i = 0; i < kParts; ++i) {
    const HalfPart half = __builtin_convertvector((BitPart)v.p[i] >> 16, HalfPart);
    std::memcpy(p + i * 16 / kParts, &half, sizeof half);
  }
}

#undef INGOT_EACH

}  // namespace ingot::cpu::INGOT_ISA

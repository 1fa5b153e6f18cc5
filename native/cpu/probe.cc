// Loops that reach a ceiling of this instruction set: memory that is only read, registers that are only multiplied.
#include "probe.h"

#include "prefetch.h"
#include "simd.h"
#include "tiles.h"

namespace ingot::cpu::INGOT_ISA {
namespace probing {

// What the compiler must believe is read, written, or used.
template <class T>
inline void opaque(T& value) { asm volatile("" : "+m"(value) : : "memory"); }

// Independent sums: enough to cover the latency of five cycles on two ports, few enough for 16 registers.
constexpr int kSums = 10;

// ---- memory ----

constexpr size_t kLine = 64, kPage = 4096;

// Part by part: a line taken as one value would go through the stack where a register holds less.
inline void gather_line(Ints& sum, const std::byte* p) {
  for (int i = 0; i < kParts; ++i) sum.p[i] ^= peek<IntPart>(p + i * sizeof(IntPart));
}

// Two streams keep more lines in flight than one; a prefetcher stops at the end of a page, so the first lines of the
// next page are asked for by hand. Nothing is read past the buffer: a prefetch does not fault.
void read(const std::byte* data, size_t bytes) {
  constexpr size_t kAhead = 512;
  const std::byte *first = data, *second = data + bytes / 2;
  Ints a{}, b{};
  for (const std::byte* const end = second; first < end;) {
    for (const std::byte* stream : {first, second}) {
      prefetch<kIntoL1>(stream + kPage);
      prefetch<kIntoL1>(stream + kPage + kLine);
    }
    for (size_t line = 0; line < kPage / kLine; ++line, first += kLine, second += kLine) {
      prefetch<kIntoL1>(first + kAhead);
      prefetch<kIntoL1>(second + kAhead);
      gather_line(a, first);
      gather_line(b, second);
    }
  }
  opaque(a), opaque(b);
}

// Two streams, asked for as products of few rows ask for weights.
void read_far(const std::byte* data, size_t bytes) {
  const std::byte *first = data, *second = data + bytes / 2;
  Ints a{}, b{};
  for (const std::byte* const end = second; first < end; first += kLine, second += kLine) {
    prefetch_weight(first, kFarBytes / 2);
    prefetch_weight(second, kFarBytes / 2);
    gather_line(a, first);
    gather_line(b, second);
  }
  opaque(a), opaque(b);
}

void read_plain(const std::byte* data, size_t bytes) {
  Ints a{}, b{};
  for (size_t at = 0; at < bytes; at += 2 * kLine) {
    gather_line(a, data + at);
    gather_line(b, data + at + kLine);
  }
  opaque(a), opaque(b);
}

// ---- registers ----

// `rounds` times sum = step(sum) for each of kSums sums.
template <class Sum, class Step>
inline void repeat(size_t rounds, const Step& step) {
  Sum sums[kSums] = {};
  opaque(sums);  // equal sums would be one
  for (size_t round = 0; round < rounds; ++round)
    for (Sum& sum : sums) sum = step(sum);
  opaque(sums);
}

#if defined(INGOT_ISA_portable)
// Portable code has no fused multiply-add and no dot product: it multiplies, then adds; integers in 16 bits at best.
template <class Lanes>
inline void multiply_add(size_t rounds) {
  Lanes a = Lanes{} + 1, b = a;
  opaque(b);
  repeat<Lanes>(rounds, [&](Lanes sum) {
    asm volatile("" : "+m"(a));  // else the product leaves the loop
    return a * b + sum;
  });
}
typedef int16_t Shorts __attribute__((vector_size(16)));
constexpr size_t kIntegerLanes = 8;
void f32(size_t rounds) { multiply_add<Part>(rounds); }
void i8(size_t rounds) { multiply_add<Shorts>(rounds); }
#else
void f32(size_t rounds) {
  Part a = part_set(1), b = a;
  opaque(a), opaque(b);
  repeat<Part>(rounds, [&](Part sum) { return part_fma(a, b, sum); });
}

#if defined(__AVX512VNNI__)
void i8(size_t rounds) {
  __m512i a = _mm512_set1_epi8(1), b = a;
  opaque(a), opaque(b);
  repeat<__m512i>(rounds, [&](__m512i sum) { return _mm512_dpbusd_epi32(sum, a, b); });
}
constexpr size_t kIntegerLanes = 64;
#elif defined(__AVXVNNI__)
void i8(size_t rounds) {
  __m256i a = _mm256_set1_epi8(1), b = a;
  opaque(a), opaque(b);
  repeat<__m256i>(rounds, [&](__m256i sum) { return _mm256_dpbusd_avx_epi32(sum, a, b); });
}
constexpr size_t kIntegerLanes = 32;
#elif defined(__AVX512BW__)
void i8(size_t rounds) {
  __m512i a = _mm512_set1_epi8(1), b = a;
  const __m512i ones = _mm512_set1_epi16(1);
  repeat<__m512i>(rounds, [&](__m512i sum) {
    asm volatile("" : "+v"(a));
    return _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(a, b), ones));
  });
}
constexpr size_t kIntegerLanes = 64;
#else
void i8(size_t rounds) {
  __m256i a = _mm256_set1_epi8(1), b = a;
  const __m256i ones = _mm256_set1_epi16(1);
  repeat<__m256i>(rounds, [&](__m256i sum) {
    asm volatile("" : "+x"(a));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
  });
}
constexpr size_t kIntegerLanes = 32;
#endif
#endif  // not portable

#if defined(__AVX512BF16__)
void bf16(size_t rounds) {
  __m512i ones = _mm512_set1_epi16(0x3f80);
  opaque(ones);
  const __m512bh a = (__m512bh)ones;
  repeat<__m512>(rounds, [&](__m512 sum) { return _mm512_dpbf16_ps(sum, a, a); });
}
#endif

#if defined(INGOT_ISA_amx)
void clear_tiles() {
  asm volatile("" ::: "memory");
  _tile_loadconfig(&kTileConfigs.back());
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
}

// Four sums cover the latency of a tile product: the blocking of a kernel with its operands at rest.
void bf16_tile(size_t rounds) {
  clear_tiles();
  for (size_t round = 0; round < rounds; ++round) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
}

void i8_tile(size_t rounds) {
  clear_tiles();
  for (size_t round = 0; round < rounds; ++round) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  _tile_release();
}
#endif

}  // namespace probing

// A constant, as the kernel table is: no code of this instruction set runs before the machine is known to have it.
extern const ProbeTable probes;
constinit const ProbeTable probes{
    probing::read,
    probing::read_far,
    probing::read_plain,
    {
        {"f32", 2.0 * probing::kSums * kLanes / kParts, probing::f32},
        {"i8", 2.0 * probing::kSums * probing::kIntegerLanes, probing::i8},
#if defined(__AVX512BF16__)
        {"bf16", 2.0 * probing::kSums * 32, probing::bf16},
#endif
#if defined(INGOT_ISA_amx)
        {"bf16_tile", 2.0 * 4 * 16 * 16 * 32, probing::bf16_tile},
        {"i8_tile", 2.0 * 4 * 16 * 16 * 64, probing::i8_tile},
#endif
    }};

}  // namespace ingot::cpu::INGOT_ISA

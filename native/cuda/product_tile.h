// What the tile kernel copies and makes: rows of x as operands in the workspace, and rings of boxes in shared memory,
// of weights and of operands.
#pragma once
#include <type_traits>

#include "hopper.h"
#include "product_rows.h"
#include "tensor_map.h"

namespace ingot::cuda {

constexpr uint32_t kStepK = 64;  // k that a warpgroup multiplies at a time, a box of 16-bit operands

// Weights that meet rows of x rounded to e4m3 or int8 too (product_tile_e4m3.h, product_tile_i8.h).
struct E4m3Both : E4m3Weights {};
struct Int8Both : Int8Weights {};

// Rows of x whose operands are there; blocks that have seen all of them.
struct Counters { uint32_t made, seen; };

struct Work {
  Counters* counters;
  float* squares;      // (tokens, kRuns), whose sums make the norms' factors; of e4m3 operands, (tokens): their factors
  float* scales;       // (blocks, scale_stride): those of int8 operands, by token
  uint16_t* operands;  // (tokens, k), by operand_place; of e4m3, bytes by e4m3_place; of int8, bytes in order
  uint32_t scale_stride;
  uint32_t made_rows;  // of x that a block makes operands of, of the first ones: few enough that they run at once
  uint32_t groups;     // that sum parts of K
};

// A block of kRows weight rows and kTokens tokens, and what lies in its shared memory: rings of weights, 128 bytes of each
// row, and of operands. Quantised weights have sums of runs beside them, others finish where the rings were.
template <class Weights, uint32_t kTokensOf>
struct Layout {
  using W = Weights;
  static constexpr bool kE4m3 = std::is_same_v<W, E4m3Both>, kInt8 = std::is_same_v<W, Int8Both>;  // both operands
  static constexpr bool kEight = kE4m3 || kInt8, kApart = W::kQuantised && !kInt8;  // kApart: sums of runs
  static constexpr uint32_t kTokens = kTokensOf, kRows = 128, kSize = kEight ? 1 : 2;  // kSize: of an operand
  // Warpgroups that multiply, 64 rows each, and one that leaves them its registers, of which one thread copies.
  static constexpr uint32_t kConsumers = kRows * 2, kThreads = kConsumers + 128;
  static constexpr uint32_t kWeightK = 8 * W::kElements;                  // of a stage
  static constexpr uint32_t kOperandK = kWeightK < 128 ? kWeightK : 128, kBoxK = kBoxBytes / kSize;
  static constexpr uint32_t kSumStride = kRows + 4;  // floats from a token's sums to the next one's
  static constexpr uint32_t kWeightBytes = kRows * kBoxBytes, kOperandBytes = kTokens * kOperandK * kSize;
  static constexpr uint32_t kSumBytes = (kTokens + 8) * kSumStride * 4;  // room for shares of equal size
  static constexpr uint32_t kKeptBytes = kApart ? kSumBytes : 0;
  static constexpr uint32_t kLeave = 40, kTake = 232;  // registers of a thread
  static constexpr uint32_t kRest = kInt8 ? 5632 : 2048, kAll = 227 * 1024 - kRest;  // barriers and factors, and all before
  static constexpr uint32_t kWanted = (kTokens == 128 ? 98304 : 65536) / kOperandBytes;
  static constexpr uint32_t kOperandStages = kWanted < 3 ? 3 : kWanted < 8 ? kWanted : 8;
  static constexpr uint32_t kFit = (kAll - kKeptBytes - kOperandStages * kOperandBytes) / kWeightBytes;
  static constexpr uint32_t kWeightStages = kFit < 16 ? kFit : 16;
  static constexpr uint32_t kRingBytes = kWeightStages * kWeightBytes + kOperandStages * kOperandBytes;
  static constexpr uint32_t kBytes = kRingBytes + kKeptBytes + kRest;
  static_assert(kWeightStages >= 3 && kRingBytes >= (kApart ? 1 : 2) * kSumBytes && kOperandBytes % 1024 == 0);

  struct Rest {
    Barrier weights_full[kWeightStages], weights_empty[kWeightStages];
    Barrier operands_full[kOperandStages], operands_empty[kOperandStages];
    Barrier made, arrived;  // all operands, and what other blocks of the cluster summed
    alignas(16) float scales[kRows], biases[kRows];
    float factors[kTokens];
    // Of int8 rows in a block of K, beside its last operands.
    alignas(16) float x_scales[kInt8 ? kOperandStages : 1][kInt8 ? kTokens : 4];
    float squares[kConsumers / 32], largest[kConsumers / 32];  // by warp, of a row that a warpgroup rounds to e4m3
  };
  static_assert(sizeof(Rest) <= kRest);

  std::byte* base;
  __device__ std::byte* weights(uint32_t stage) const { return base + stage * kWeightBytes; }
  __device__ std::byte* operands(uint32_t stage) const {
    return base + kWeightStages * kWeightBytes + stage * kOperandBytes;
  }
  // Both by token; `parts` are those that come from other blocks.
  __device__ float* sums() const { return reinterpret_cast<float*>(base + (kApart ? kRingBytes : kSumBytes)); }
  __device__ float* parts() const { return reinterpret_cast<float*>(base); }
  __device__ Rest& rest() const { return *reinterpret_cast<Rest*>(base + kRingBytes + kKeptBytes); }

  __device__ void prepare() const {
    for (uint32_t i = 0; i < kWeightStages; ++i)
      init(rest().weights_full[i], 1), init(rest().weights_empty[i], kConsumers / 32);
    for (uint32_t i = 0; i < kOperandStages; ++i)
      init(rest().operands_full[i], 1), init(rest().operands_empty[i], kConsumers / 32);
    init(rest().made, 1);
  }
};

// Where one is in a ring.
template <uint32_t kStages>
struct Turn {
  uint32_t stage = 0, parity = 0;
  __device__ void advance() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

#ifdef INGOT_HOPPER
template <uint32_t kThreads>
__device__ void meet_some() { asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory"); }

// Where the operands of elements c and c + 1 of a row lie, in words; those of c + 2 and c + 3 are 4 words behind.
// Instruction i of a span of 4 kElements takes elements 4 i .. 4 i + 3 of each lane's 16 bytes of weights, two of them for
// either half of its 16 k.
template <class W>
__device__ constexpr uint32_t operand_place(uint32_t c) {
  constexpr uint32_t kSpan = 4 * W::kElements;
  return (c / kSpan * kSpan + c % W::kElements / 4 * 16) / 2 + c % kSpan / W::kElements;
}

template <class W>
__device__ void store_operands(uint32_t* row, uint32_t c, const float (&v)[4]) {
  uint32_t low = pack<W::kHalf>(v[0], v[1]), high = pack<W::kHalf>(v[2], v[3]);
  if constexpr (W::kInterleaved) {  // 0 4 1 5 2 6 3 7 over two lanes
    const bool second = c % 8;
    const uint32_t other = __shfl_xor_sync(~0u, second ? low : high, 1);
    const uint32_t first = second ? other : low, last = second ? high : other;
    low = __byte_perm(first, last, 0x5410), high = __byte_perm(first, last, 0x7632);
  }
  uint32_t* to = row + operand_place<W>(c);
  to[0] = low, to[4] = high;
}

// Rows first .. last of an x that copies() takes, kGroups x 8 elements of a thread in flight.
template <class W, uint32_t kThreads>
__device__ void reorder_rows(const Product& p, uint32_t first, uint32_t last, uint32_t* rows) {
  constexpr uint32_t kGroups = 8;
  uint32_t token = first, c = threadIdx.x * 8;
  while (token < last) {
    uint4 v[kGroups];
    uint32_t* to[kGroups];
#pragma unroll
    for (uint32_t i = 0; i < kGroups; ++i, c += kThreads * 8) {
      for (; c >= p.k; c -= p.k) ++token;
      to[i] = nullptr;
      if (token >= last) continue;
      v[i] = *reinterpret_cast<const uint4*>(row_of<const uint16_t>(p.x, token) + c);
      to[i] = rows + size_t{token} * (p.k / 2) + operand_place<W>(c);
    }
    constexpr uint32_t kHigh = operand_place<W>(4);
#pragma unroll
    for (uint32_t i = 0; i < kGroups; ++i) {
      if (!to[i]) continue;
      const uint4 eight = W::kInterleaved ? interleaved(v[i]) : v[i];
      to[i][0] = eight.x, to[i][4] = eight.y, to[i][kHigh] = eight.z, to[i][kHigh + 4] = eight.w;
    }
  }
}

// Rows first .. last of f32 x, as read_rows has them, in code that is short: what runs once waits for its code.
template <class W, uint32_t kThreads>
__device__ void make_rows(const Product& p, uint32_t first, uint32_t last, uint32_t* operands, float* squares) {
  constexpr uint32_t kRows = 2, kGroups = 2;
  const uint32_t end = round_up(p.k, kQuantBlock), warps = kThreads / 32;
#pragma unroll 1
  for (uint32_t at = first; at < last; at += kRows) {
    float sum[kRows] = {};
#pragma unroll 1
    for (uint32_t base = threadIdx.x * 4; base < end; base += kGroups * kThreads * 4) {
      float4 x[kGroups][kRows] = {};
      float weight[kGroups][4];
#pragma unroll
      for (uint32_t i = 0; i < kGroups; ++i) {
        const uint32_t c = base + i * kThreads * 4;
#pragma unroll
        for (uint32_t j = 0; j < kRows; ++j)
          if (c < p.k && at + j < last)
            x[i][j] = *reinterpret_cast<const float4*>(row_of<const float>(p.x, at + j) + c);
        float4 f = {};
        if (p.norm && c < p.k) f = __ldg(reinterpret_cast<const float4*>(p.norm + c));
        weight[i][0] = p.norm ? p.norm_offset + f.x : 1, weight[i][1] = p.norm ? p.norm_offset + f.y : 1;
        weight[i][2] = p.norm ? p.norm_offset + f.z : 1, weight[i][3] = p.norm ? p.norm_offset + f.w : 1;
      }
#pragma unroll
      for (uint32_t i = 0; i < kGroups; ++i)
#pragma unroll
        for (uint32_t j = 0; j < kRows; ++j) {
          const uint32_t c = base + i * kThreads * 4;
          float v[4] = {x[i][j].x, x[i][j].y, x[i][j].z, x[i][j].w};
#pragma unroll
          for (uint32_t e = 0; e < 4; ++e) sum[j] = fmaf(v[e], v[e], sum[j]), v[e] *= weight[i][e];
          if (c < end && at + j < last) store_operands<W>(operands + size_t{at + j} * (end / 2), c, v);
        }
    }
    if (p.norm)
#pragma unroll
      for (uint32_t j = 0; j < kRows; ++j) {
        const float all = warp_sum(sum[j]);
        if (threadIdx.x % 32 == 0 && at + j < last) squares[(at + j) * warps + threadIdx.x / 32] = all;
      }
  }
}

template <class L>
__device__ void make_rows_e4m3(const Product& p, const Work& work, uint32_t first, uint32_t last, const L& layout);
template <class L>
__device__ void make_rows_i8(const Product& p, const Work& work, uint32_t first, uint32_t last);

// Makes this block's share of the operands of x, by the threads that multiply. A block that waits for others' does so
// for those of blocks that all run at once.
template <class L>
__device__ void make_operands(const Product& p, const Work& work, const L& layout) {
  using W = typename L::W;
  static_assert(L::kConsumers == kRuns * 32);  // the stream adds squares of as many warps
  const uint32_t per = work.made_rows;
  const uint32_t first = min(blockIdx.x * per, p.tokens()), last = min(first + per, p.tokens());
  const bool wide = p.x.dtype == DType::f32 && p.k % 4 == 0 && p.x.stride % 16 == 0 &&
                    reinterpret_cast<size_t>(p.x.data) % 16 == 0;
  uint32_t* operands = reinterpret_cast<uint32_t*>(work.operands);
  if (p.norm)  // no kernel writes it
    for (uint32_t c = threadIdx.x * 32; c < p.k; c += L::kConsumers * 32) prefetch(p.norm + c);
  wait_for_inputs();
  if (first == last) return;
  const auto meet = [] { meet_some<L::kConsumers>(); };
  if constexpr (L::kInt8) {
    make_rows_i8<L>(p, work, first, last);
  } else if constexpr (L::kEight) {
    make_rows_e4m3<L>(p, work, first, last, layout);
  } else if (copies<W>(p)) {
    reorder_rows<W, L::kConsumers>(p, first, last, operands);
  } else if (wide && !(W::kHalf && p.norm)) {
    make_rows<W, L::kConsumers>(p, first, last, operands, work.squares);
  } else {
    for (uint32_t at = first; at < last; ++at)
      read_rows<W, 1, 4, L::kConsumers>(
          p, at, 1, work.squares + at * kRuns,
          [&](uint32_t, uint32_t c, const float (&v)[4]) {
            store_operands<W>(operands + size_t{at} * (round_up(p.k, kQuantBlock) / 2), c, v);
          },
          meet);
  }
  fence_global();
  meet();
  if (threadIdx.x == 0)
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(&work.counters->made), "r"(last - first) : "memory");
}

// Waits for all operands. The last block to see them leaves the counters as they were found.
__device__ inline void await_operands(const Product& p, const Work& work) {
  uint32_t made;
  do asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(made) : "l"(&work.counters->made) : "memory");
  while (made < p.tokens());
  fence_global();
}
__device__ inline void leave(const Work& work) {
  if (atomicAdd(&work.counters->seen, 1) != gridDim.x - 1) return;
  work.counters->made = work.counters->seen = 0;
}

// Copies weights of blocks first .. last, as many as fit at once, and operands once they are made.
template <class L>
__device__ void copy_all(const Product& p, const Work& work, const CUtensorMap& weights, const CUtensorMap& operands,
                         const L& layout, uint32_t row, uint32_t token, uint32_t first, uint32_t last) {
  constexpr uint32_t kRatio = L::kWeightK / L::kOperandK;
  const uint32_t all = (last - first) * (kQuantBlock / L::kWeightK);
  typename L::Rest& rest = layout.rest();
  Turn<L::kWeightStages> to, freed;
  uint32_t weight = 0;
  const auto copy_weights = [&] {
    expect(rest.weights_full[to.stage], L::kWeightBytes);
    copy_box(layout.weights(to.stage), weights, (first * (kQuantBlock / L::kWeightK) + weight) * kBoxBytes, row,
             rest.weights_full[to.stage]);
    to.advance(), ++weight;
  };
  while (weight < min(all, L::kWeightStages)) copy_weights();
  prefetch(operands);
  wait_for_inputs();
  await_operands(p, work);
  arrive(rest.made);
  Turn<L::kOperandStages> turn;
  for (uint32_t chunk = 0; chunk < all * kRatio; ++chunk) {
    const bool behind = chunk >= L::kOperandStages;
    if (behind) wait(rest.operands_empty[turn.stage], turn.parity ^ 1);
    const bool scales = L::kInt8 && chunk % 2;  // of the block of K that ends here
    expect(rest.operands_full[turn.stage], L::kOperandBytes + (scales ? L::kTokens * 4 : 0));
    if (scales)
      copy_bytes(rest.x_scales[turn.stage], work.scales + (first + chunk / 2) * work.scale_stride + token, L::kTokens * 4,
                 rest.operands_full[turn.stage]);
#pragma unroll
    for (uint32_t box = 0; box < L::kOperandK / L::kBoxK; ++box)
      copy_box(layout.operands(turn.stage) + box * L::kTokens * kBoxBytes, operands,
               (first * kQuantBlock + chunk * L::kOperandK + box * L::kBoxK) * L::kSize, token,
               rest.operands_full[turn.stage]);
    turn.advance();
    // The weights that were multiplied with what lay here are free.
    if (behind && (chunk - L::kOperandStages) % kRatio == kRatio - 1 && weight < all) {
      wait(rest.weights_empty[freed.stage], freed.parity);
      freed.advance();
      copy_weights();
    }
  }
  leave(work);
}

// Rows of a tile that a lane holds weights and sums of: this one and the one 8 behind. Neighbours are four apart, so that
// lanes that load at once do so from different banks.
__device__ inline uint32_t lane_row() {
  const uint32_t g = threadIdx.x % 32 / 4;
  return g % 2 * 4 + g / 2;
}

// A warp's weights of 64 k, as mma.h has them, for four instructions.
template <class W>
struct Fragment {
  uint32_t a[4][4];

  // From step `step` of a stage on.
  __device__ void load(const std::byte* stage, uint32_t step, __nv_bfloat162 sub_low, __nv_bfloat162 sub_high) {
    const uint32_t row = threadIdx.x / 32 * kTile + lane_row(), t = threadIdx.x % 4;
    const auto unit = [&](uint32_t slot, uint32_t high) {
      return *reinterpret_cast<const uint4*>(stage + (row + high * 8) * kBoxBytes + ((slot * 4 + t) ^ row % 8) * 16);
    };
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
      const uint32_t eight = step * 2 + i, slot = eight / (W::kElements / 8), within = eight % (W::kElements / 8);
      const uint4 g = W::eight(unit(slot, 0), within, sub_low), h = W::eight(unit(slot, 1), within, sub_high);
      a[2 * i][0] = g.x, a[2 * i][1] = h.x, a[2 * i][2] = g.y, a[2 * i][3] = h.y;
      a[2 * i + 1][0] = g.z, a[2 * i + 1][1] = h.z, a[2 * i + 1][2] = g.w, a[2 * i + 1][3] = h.w;
    }
  }
};

// The factors of quantised weights of a lane's rows in a block of K.
template <class W>
struct Factors {
  static constexpr uint32_t kSpans = W::kInterleaved ? kQuantBlock / (4 * W::kElements) : 1;
  __half scale[2];
  int8_t sub[kSpans][2];

  __device__ void load(const Product& p, uint32_t tile, uint32_t block) {
    const size_t row = size_t{tile} * kTile + lane_row();
    if constexpr (W::kQuantised) {
      if (tile >= p.tiles() || block >= p.blocks()) return;
      const __half* from = p.scales + row * p.blocks() + block;
      scale[0] = __ldg(from), scale[1] = __ldg(from + size_t{8} * p.blocks());
    }
    if constexpr (W::kInterleaved) {
      const uint32_t groups = ceil_div(p.k, kQuantGroup);
      for (uint32_t span = 0; span < kSpans; ++span) {
        const uint32_t group = block * (kQuantBlock / kQuantGroup) + span * 4 + threadIdx.x % 4;
        const int8_t* from = p.sub_scales + row * groups + group;
        sub[span][0] = group < groups ? __ldg(from) : 0;
        sub[span][1] = group < groups ? __ldg(from + size_t{8} * groups) : 0;
      }
    }
  }
  __device__ __nv_bfloat162 sub_scale(uint32_t step, uint32_t high) const {
    return __float2bfloat162_rn(W::kInterleaved ? float(sub[step * kSpans / (kQuantBlock / kStepK)][high]) : 0);
  }
};
#endif

}  // namespace ingot::cuda

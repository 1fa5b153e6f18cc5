// Few rows against many keys, on tensor cores: 16 rows of one head of keys a block, whose four warps share each tile of
// 64 positions, by position for the scores and by element for the output. While decoding, a sequence's splits may part
// over blocks: each stores its splits' sums, and the last merges them in order.
#pragma once
#include "attention_rows_memory.h"

namespace ingot::cuda::paged {

// How a decode step's work is cut, and where sums meet: by (item, split, row, pair of elements) two sums and what is the
// same for all of the row, its largest score and its total. Zeros between launches: a total that is not says that all
// four are there, since they are stored and loaded as one. No fence, which waits for every load that its multiprocessor
// has under way, has to say so. The block that merges is the last of its item in the grid: those that it awaits run.
struct Parts {
  uint32_t parts, splits;  // blocks of an item; splits of one at most
  uint32_t clustered;      // the blocks of an item are a cluster, and their sums meet in its memory instead
  uint4* sums;
};

__device__ inline void post(uint4* to, float x, float y, float most, float total) {
  const uint32_t nonzero = total == 0 ? 0x80000000 : __float_as_uint(total);
  const uint64_t low = uint64_t(__float_as_uint(y)) << 32 | __float_as_uint(x);
  const uint64_t high = uint64_t(nonzero) << 32 | __float_as_uint(most);
  asm volatile("{.reg .b128 v; mov.b128 v, {%1, %2}; st.relaxed.gpu.global.b128 [%0], v;}" ::"l"(to), "l"(low),
               "l"(high)
               : "memory");
}
__device__ inline float4 look(const uint4* from) {
  uint64_t low, high;
  asm volatile("{.reg .b128 v; ld.relaxed.gpu.global.b128 v, [%2]; mov.b128 {%0, %1}, v;}"
               : "=l"(low), "=l"(high) : "l"(from) : "memory");
  return {__uint_as_float(uint32_t(low)), __uint_as_float(uint32_t(low >> 32)), __uint_as_float(uint32_t(high)),
          __uint_as_float(uint32_t(high >> 32))};
}

// Of one split, or of splits merged: of rows lane / 4 and that + 8, this warp's elements.
template <int Pairs>
struct RowSums {
  float most[2], total[2], out[Pairs][2][4];

  __device__ void clear() {
    most[0] = most[1] = -INFINITY;
    total[0] = total[1] = 0;
#pragma unroll
    for (int i = 0; i < Pairs; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j) out[i][j / 4][j % 4] = 0;
  }
  // Adds a later split.
  __device__ void merge(const Scores& scores, const RowSums& later) {
    float mine[2], other[2];
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const float next = fmaxf(most[side], later.most[side]), peak = scores.peak(next);
      mine[side] = scores.rescale(most[side], peak);
      other[side] = scores.rescale(later.most[side], peak);
      most[side] = next;
      total[side] = fmaf(later.total[side], other[side], total[side] * mine[side]);
    }
#pragma unroll
    for (int i = 0; i < Pairs; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        float& x = out[i][j / 4][j % 4];
        x = fmaf(later.out[i][j / 4][j % 4], other[j / 2 % 2], x * mine[j / 2 % 2]);
      }
  }
};

// Two elements of the sums of splits merged in order.
struct Merged {
  float most = -INFINITY, total = 0, x = 0, y = 0;

  __device__ void add(const Scores& scores, float its_most, float its_total, float its_x, float its_y) {
    const float next = fmaxf(most, its_most), peak = scores.peak(next);
    const float mine = scores.rescale(most, peak), other = scores.rescale(its_most, peak);
    most = next;
    total = fmaf(its_total, other, total * mine);
    x = fmaf(its_x, other, x * mine);
    y = fmaf(its_y, other, y * mine);
  }
};

// Merges what blocks of 128 threads posted of an item's splits, in order, and leaves zeros: puts pairs of elements.
template <class F>
__device__ void merge_posted(const Scores& scores, uint4* slots, uint32_t pairs, uint32_t splits, uint32_t used,
                             const F& put) {
  constexpr uint32_t kAtOnce = 8;
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < used; i += 128) {
    Merged merged;
#pragma unroll 1
    for (uint32_t base = 0; base < splits; base += kAtOnce) {
      float4 later[kAtOnce];
#pragma unroll
      for (uint32_t s = 0; s < kAtOnce; ++s)
        later[s] = look(slots + size_t(min(base + s, splits - 1)) * pairs + i);
#pragma unroll
      for (uint32_t s = 0; s < kAtOnce; ++s) {
        if (base + s >= splits) break;
        uint4* slot = slots + size_t(base + s) * pairs + i;
        while (__float_as_uint(later[s].w) == 0) later[s] = look(slot);
        *slot = {};
        merged.add(scores, later[s].z, later[s].w, later[s].x, later[s].y);
      }
    }
    const float inverse = __frcp_rn(merged.total);
    put(i, merged.x * inverse, merged.y * inverse);
  }
}

template <class T, bool Int8, int Dim, bool Exact, bool Decode, bool Lean>
struct RowsBlock : RowsMemory<T, Int8, Dim, Exact, Decode, Lean> {
  using Memory = RowsMemory<T, Int8, Dim, Exact, Decode, Lean>;
  using Layout = typename Memory::Layout;
  using Sums = RowSums<Layout::kPairs>;
  static constexpr int kWarps = Layout::kWarps, kPairs = Layout::kPairs, kRows = Layout::kRows;
  static constexpr uint32_t kAhead = Memory::kAhead, kTilesOfSplit = kSplit / kTile;
  using Memory::Memory, Memory::a, Memory::rows, Memory::dim, Memory::width, Memory::scores, Memory::warp, Memory::lane,
      Memory::low, Memory::high, Memory::last, Memory::own, Memory::from, Memory::appends;
  using Memory::query, Memory::weights, Memory::keys, Memory::values, Memory::angles, Memory::most_of, Memory::sum_of,
      Memory::key_scales, Memory::value_scales, Memory::fresh_scales;
  using Memory::token, Memory::query_head, Memory::take_heads, Memory::load, Memory::place,
      Memory::start, Memory::place_started;

  // Adds tile t to the sums of its split.
  __device__ void attend(uint32_t t, Sums& sums) {
    const uint32_t stage = t % Layout::kStages * kTile;
    float s[2][4] = {};
    const uint32_t key = shared_address(keys + (stage + warp * 16 + lane % 8 + lane / 16 * 8) * width +
                                        lane / 8 % 2 * 8);
    const uint32_t q = shared_address(query + lane % 16 * width + lane / 16 * 8);
#pragma unroll
    for (int k = 0; k < Dim / 16; ++k) {
      if (!Exact && uint32_t(k) * 16 >= dim) break;
      uint32_t left[4], right[4];
      load_matrices(left, q + k * 32);
      load_matrices(right, key + k * 32);
      multiply_add<T>(s[0], left, right[0], right[1]);
      multiply_add<T>(s[1], left, right[2], right[3]);
    }
    float most[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int side = i / 2 % 2;
      const uint32_t column = warp * 16 + i / 4 * 8 + lane % 4 * 2 + i % 2, p = t * kTile + column;
      float& x = s[i / 4][i % 4];
      if constexpr (Int8) x *= key_scales[column];
      x = p <= own[side] && p >= from[side] ? scores(x) : -INFINITY;
      most[side] = fmaxf(most[side], x);
    }
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      most[side] = fmaxf(most[side], __shfl_xor_sync(kAll, most[side], 1));
      most[side] = fmaxf(most[side], __shfl_xor_sync(kAll, most[side], 2));
      if (lane % 4 == 0) most_of[warp * 16 + lane / 4 + side * 8] = most[side];
    }
    __syncthreads();
    float scale[2], peak[2];
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const float* m = most_of + lane / 4 + side * 8;
      const float next = fmaxf(sums.most[side], fmaxf(fmaxf(m[0], m[16]), fmaxf(m[32], m[48])));
      peak[side] = scores.peak(next);
      scale[side] = scores.rescale(sums.most[side], peak[side]);
      sums.most[side] = next;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t column = warp * 16 + i * 8 + lane % 4 * 2;
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        float x = scores.weight(s[i][side * 2], peak[side]), y = scores.weight(s[i][side * 2 + 1], peak[side]);
        if constexpr (Int8) {
          s[i][side * 2] = x;
          s[i][side * 2 + 1] = y;
          x *= value_scales[column];
          y *= value_scales[column + 1];
        }
        *reinterpret_cast<uint32_t*>(weights + (lane / 4 + side * 8) * Layout::kScores + column) = packed<T>(x, y);
      }
    }
    if constexpr (Int8) {  // weights take their scales before they are rounded, the total is that of the plain ones
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        float sum = (s[0][side * 2] + s[0][side * 2 + 1]) + (s[1][side * 2] + s[1][side * 2 + 1]);
        sum += __shfl_xor_sync(kAll, sum, 1);
        sum += __shfl_xor_sync(kAll, sum, 2);
        if (lane % 4 == 0) sum_of[warp * 16 + lane / 4 + side * 8] = sum;
      }
    }
    __syncthreads();
    weigh(stage, scale, sums);
  }

  // Totals are a product, too, with a column of ones.
  __device__ void weigh(uint32_t stage, const float (&scale)[2], Sums& sums, uint32_t column = 0) {
    float total[4] = {sums.total[0] * scale[0], 0, sums.total[1] * scale[1], 0};
#pragma unroll
    for (int i = 0; i < kPairs; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j) sums.out[i][j / 4][j % 4] *= scale[j / 2 % 2];
    const uint32_t w = shared_address(weights + lane % 16 * Layout::kScores + column + lane / 16 * 8);
    const uint32_t value = shared_address(values + (stage + lane % 16) * width + lane / 16 * 8);
    const uint32_t one = packed<T>(1, 1);
#pragma unroll
    for (int k = 0; k < int(kTile / 16); ++k) {
      uint32_t left[4];
      load_matrices(left, w + k * 32);
      if constexpr (!Int8) multiply_add<T>(total, left, one, one);
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        const uint32_t pair = i * kWarps + warp;
        if ((!Exact || Dim % 64) && pair * 16 >= dim) break;
        uint32_t right[4];
        load_transposed(right, value + k * 16 * width * 2 + pair * 32);
        multiply_add<T>(sums.out[i][0], left, right[0], right[1]);
        multiply_add<T>(sums.out[i][1], left, right[2], right[3]);
      }
    }
    if constexpr (Int8) {
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const float* m = sum_of + lane / 4 + side * 8;
        total[side * 2] += (m[0] + m[16]) + (m[32] + m[48]);
      }
    }
    sums.total[0] = total[0];
    sums.total[1] = total[2];
  }

  // Calls f(row, element, value) for each of this lane's sums.
  template <class F>
  __device__ void each(const Sums& sums, const F& f) const {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const uint32_t r = lane / 4 + side * 8;
      if (r >= rows.count) continue;
#pragma unroll
      for (int i = 0; i < kPairs; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const uint32_t d = (i * kWarps + warp) * 16 + j / 2 * 8 + lane % 4 * 2 + j % 2;
          if (d < dim) f(side, r, d, sums.out[i][j / 2][side * 2 + j % 2]);
        }
    }
  }

  __device__ void finish(const Sums& sums) const {
    const float inverse[2] = {__frcp_rn(sums.total[0]), __frcp_rn(sums.total[1])};
    each(sums, [&](int side, uint32_t r, uint32_t d, float x) {
      if (d < a.head_dim) put_out(a, token(r), query_head(r) * a.head_dim + d, x * inverse[side]);
    });
  }

  // Tiles [begin, end), split by split; `done(split, sums)` takes each.
  template <class F>
  __device__ void sweep(uint32_t begin, uint32_t end, const F& done) {
    Sums sums;
    sums.clear();
    for (uint32_t t = begin; t < end; ++t) {
      if constexpr (kAhead == 0) {
        __syncthreads();
        load(t);
        place(t);
        commit_copies();
        await_copies<0>();
        __syncthreads();
      } else {
        await_copies<kAhead - 1>();
        __syncthreads();
        if (t + kAhead < end) {
          load(t + kAhead);
          place(t + kAhead);
        }
        commit_copies();
      }
      attend(t, sums);
      if (t + 1 == end || (t + 1) % kTilesOfSplit == 0) {
        done(t / kTilesOfSplit, sums);
        sums.clear();
      }
    }
  }
  __device__ void run() {
    appends = false;
    const uint32_t begin = low / kTile, end = (high + kTile - 1) / kTile;
    start(begin, end);
    take_heads();
    __syncthreads();
    Sums whole;
    whole.clear();
    sweep(begin, end, [&](uint32_t, const Sums& sums) { whole.merge(scores, sums); });
    finish(whole);
  }

  // Part of a sequence's splits; `item` is the block's row tile and head, of which each part has a block.
  __device__ void decode(const Parts& parts, uint32_t part, uint32_t item) {
    const uint32_t first = low / kSplit, splits = last / kSplit + 1 - first;
    const uint32_t each_part = (splits + parts.parts - 1) / parts.parts, used = (splits + each_part - 1) / each_part;
    const uint32_t from_split = first + part * each_part, to_split = min(from_split + each_part, first + splits);
    const uint32_t from_tile = max(low / kTile, from_split * kTilesOfSplit);
    const uint32_t begin = from_tile, end = min(last / kTile + 1, to_split * kTilesOfSplit);
    appends = part + 1 == used;
    if (part < used) start(begin, end);
    find_angles(a, int32_t(last), angles, threadIdx.x, Layout::kThreads);
    __syncthreads();
    wait_for_inputs();
    let_next_start();
    if (part >= used) return;
    take_heads();
    __syncthreads();
    place_started(begin, end);
    const uint32_t pairs = min(a.group, uint32_t(kRows)) * dim / 2;  // of a split
    uint4* slots = parts.sums + size_t(item) * parts.splits * pairs;
    Sums whole;
    whole.clear();
    const auto done = [&](uint32_t split, const Sums& sums) {
      if (used == 1) whole.merge(scores, sums);
      else post_sums(slots + size_t(split - first) * pairs, sums);
    };
    sweep(begin, end, done);
    if (used == 1) finish(whole);
    else if (part + 1 == used) merge_slots(slots, pairs, splits);
  }

  __device__ void post_sums(uint4* slot, const Sums& sums) const {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const uint32_t r = lane / 4 + side * 8;
      if (r >= rows.count) continue;
#pragma unroll
      for (int i = 0; i < kPairs; ++i)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const uint32_t d = (i * kWarps + warp) * 16 + j * 8 + lane % 4 * 2;
          const float(&x)[4] = sums.out[i][j];
          if (d < dim) post(slot + (r * dim + d) / 2, x[side * 2], x[side * 2 + 1], sums.most[side], sums.total[side]);
        }
    }
  }

  __device__ void merge_slots(uint4* slots, uint32_t pairs, uint32_t splits) const {
    merge_posted(scores, slots, pairs, splits, rows.count * dim / 2, [&](uint32_t i, float x, float y) {
      const uint32_t r = 2 * i / dim, d = 2 * i % dim, column = query_head(r) * a.head_dim + d;
      if (d < a.head_dim) put_out(a, token(r), column, x);
      if (d + 1 < a.head_dim) put_out(a, token(r), column + 1, y);
    });
  }
};

template <class T, bool Int8, int Dim, bool Exact, bool Lean>
__global__ void __launch_bounds__(128) attend_rows(const __grid_constant__ Attention a) {
  extern __shared__ __align__(16) std::byte memory[];
  wait_for_inputs();
  let_next_start();
  using Block = RowsBlock<T, Int8, Dim, Exact, false, Lean>;
  Rows rows;
  if (!find_rows(a, blockIdx.y, Block::kRows, rows)) return;
  Block(a, rows, blockIdx.x, memory).run();
}

// A decode step: every sequence has one token. Pages of earlier positions are read before the inputs are there.
template <class T, bool Int8, int Dim, bool Exact, bool Lean>
__global__ void __launch_bounds__(128) decode_rows(const __grid_constant__ Attention a,
                                                   const __grid_constant__ Parts parts) {
  extern __shared__ __align__(16) std::byte memory[];
  using Block = RowsBlock<T, Int8, Dim, Exact, true, Lean>;
  const uint32_t tiles = (a.group + Block::kRows - 1) / Block::kRows, first = blockIdx.z % tiles * Block::kRows;
  const Rows rows{blockIdx.z / tiles, first, min(uint32_t(Block::kRows), a.group - first)};
  Block(a, rows, blockIdx.y, memory).decode(parts, blockIdx.x, blockIdx.z * a.kv_heads + blockIdx.y);
}

}  // namespace ingot::cuda::paged

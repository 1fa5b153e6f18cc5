// Many rows on tensor cores: 64 rows of one head of keys a block, 16 a warp, which share each tile of 64 keys and
// values (FlashAttention-2: Dao, 2023). A row's sums are those of attention_rows.h, in the same order.
#pragma once
#include "attention_call.h"

namespace ingot::cuda::paged {

template <int Dim>
struct TilesLayout {
  static constexpr int kWarps = 4, kThreads = 32 * kWarps, kRows = 16 * kWarps, kWidth = Dim + 8;
  static constexpr int kStages = Dim > 64 ? 2 : 3, kResident = Dim > 64 ? 2 : 3;  // blocks at once
  static constexpr int kSums = Dim / 2;  // of a thread

  template <class T>
  static size_t bytes(const Attention& a) {
    return kStages * 2 * kTile * kWidth * sizeof(T) + kThreads * kSums * sizeof(float) +
           kWarps * a.pairs * sizeof(float2);
  }
};

template <class T, int Dim>
struct TilesBlock {
  using Layout = TilesLayout<Dim>;
  static constexpr int kWidth = Layout::kWidth, kStages = Layout::kStages, kThreads = Layout::kThreads;
  static constexpr uint32_t kAhead = kStages - 1;

  const Attention& a;
  const Rows rows;
  const uint32_t head;
  const Scores scores;
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int32_t* const table;
  T *keys, *values;
  float* whole;  // the warp's merged sums; before, its queries
  float2* angles;
  uint32_t low, high, own[2], from[2], first_own, last_own, first_from, last_from;  // of this lane's rows; of the warp's
  uint32_t query[Dim / 16][4];
  float most[2], total[4], out[Dim / 8][4];
  float whole_most[2], whole_total[2];

  __device__ TilesBlock(const Attention& a, const Rows& rows, uint32_t head, std::byte* memory)
      : a(a), rows(rows), head(head), scores(a),
        table(a.block_table + size_t(rows.sequence) * a.blocks_per_sequence) {
    keys = reinterpret_cast<T*>(memory);
    values = keys + kStages * kTile * kWidth;
    float* sums = reinterpret_cast<float*>(values + kStages * kTile * kWidth);
    whole = sums + warp * 32 * Layout::kSums;
    angles = reinterpret_cast<float2*>(sums + kThreads * Layout::kSums) + warp * a.pairs;
    low = a.sees_from(position(0)) / kPage * kPage;
    high = position(rows.count - 1) + 1;
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      own[side] = position(min(warp * 16 + lane / 4 + side * 8, rows.count - 1));
      from[side] = a.sees_from(own[side]);
    }
    first_own = __shfl_sync(kAll, own[0], 0);
    last_own = __shfl_sync(kAll, own[1], 31);
    first_from = __shfl_sync(kAll, from[0], 0);
    last_from = __shfl_sync(kAll, from[1], 31);
  }

  __device__ uint32_t token(uint32_t r) const {
    return uint32_t(a.sequence_start[rows.sequence]) + (rows.first + r) / a.group;
  }
  __device__ uint32_t query_head(uint32_t r) const { return head * a.group + (rows.first + r) % a.group; }
  __device__ uint32_t position(uint32_t r) const { return uint32_t(a.positions[token(r)]); }

  // Norms, turns and rounds the warp's queries into registers.
  __device__ void take_queries() {
    constexpr int kAtOnce = 4;
    uint32_t turned = kAll;
#pragma unroll
    for (int base = 0; base < 16; base += kAtOnce) {
      Lanes<Dim / 32> heads[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const uint32_t r = min(warp * 16 + base + i, rows.count - 1);
        heads[i].read(a, a.q + token(r) * a.q_stride + query_head(r) * a.head_dim);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const uint32_t t = token(min(warp * 16 + base + i, rows.count - 1));
        if (t != turned) {
          __syncwarp();
          find_angles(a, a.positions[t], angles, lane, 32);
          turned = t;
        }
        heads[i].write(a, whole + (base + i) * Dim);
        turn(a, whole + (base + i) * Dim, a.q_norm, angles);
      }
    }
    __syncwarp();
#pragma unroll
    for (int k = 0; k < Dim / 16; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 x = *reinterpret_cast<const float2*>(whole + (lane / 4 + i % 2 * 8) * Dim + k * 16 + i / 2 * 8 +
                                                          lane % 4 * 2);
        query[k][i] = packed<T>(x.x, x.y);
      }
    __syncwarp();
  }

  __device__ void load(uint32_t t) {
    const uint32_t stage = t % kStages * kTile;
    const std::byte* pages[kTile / kPage];
#pragma unroll
    for (uint32_t i = 0; i < kTile / kPage; ++i) {
      const uint32_t p = t * kTile + i * kPage;
      pages[i] = a.state + (p >= low && p < high ? size_t(table[p / kPage]) * a.unit : 0);
    }
    constexpr uint32_t chunks = Dim / 8;
#pragma unroll
    for (uint32_t plane = 0; plane < 2; ++plane) {
      T* to = (plane ? values : keys) + stage * kWidth;
      const size_t offset = size_t(plane * a.kv_heads + head) * kPage * Dim * sizeof(T);
      if (t * kTile >= low && (t + 1) * kTile <= high) {
        copy_tile<Dim, kThreads>(shared_address(to), pages, offset);
        continue;
      }
#pragma unroll
      for (uint32_t i = 0; i < kTile * chunks / kThreads; ++i) {
        const uint32_t at = i * kThreads + threadIdx.x, r = at / chunks, column = at % chunks, p = t * kTile + r;
        const bool present = p >= low && p < high;
        const std::byte* from = pages[r / kPage] + offset + (r % kPage * chunks + column) * 16;
        copy_async(shared_address(to + r * kWidth + column * 8), present ? from : a.state, present);
      }
    }
  }

  __device__ void clear() {
    most[0] = most[1] = -INFINITY;
#pragma unroll
    for (int i = 0; i < 4; ++i) total[i] = 0;
#pragma unroll
    for (int i = 0; i < Dim / 8; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) out[i][j] = 0;
  }

  __device__ void attend(uint32_t t) {
    const uint32_t stage = t % kStages * kTile;
    float s[kTile / 8][4];
#pragma unroll
    for (int i = 0; i < int(kTile / 8); ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) s[i][j] = 0;
    const uint32_t key = shared_address(keys + (stage + lane % 8 + lane / 16 * 8) * kWidth + lane / 8 % 2 * 8);
#pragma unroll
    for (int k = 0; k < Dim / 16; ++k)
#pragma unroll
      for (int n = 0; n < int(kTile / 16); ++n) {
        uint32_t right[4];
        load_matrices(right, key + (n * 16 * kWidth + k * 16) * sizeof(T));
        multiply_add<T>(s[2 * n], query[k], right[0], right[1]);
        multiply_add<T>(s[2 * n + 1], query[k], right[2], right[3]);
      }
    if (!scores.plain || t * kTile + kTile - 1 > first_own || t * kTile < last_from) {
#pragma unroll
      for (int i = 0; i < int(kTile / 8); ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const uint32_t p = t * kTile + i * 8 + lane % 4 * 2 + j % 2;
          s[i][j] = p <= own[j / 2] && p >= from[j / 2] ? scores(s[i][j]) : -INFINITY;
        }
    }
    float peak[2], scale[2];
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      float next = s[0][side * 2];
#pragma unroll
      for (int i = 0; i < int(kTile / 8); ++i) next = fmaxf(next, fmaxf(s[i][side * 2], s[i][side * 2 + 1]));
      next = fmaxf(next, __shfl_xor_sync(kAll, next, 1));
      next = fmaxf(most[side], fmaxf(next, __shfl_xor_sync(kAll, next, 2)));
      peak[side] = scores.peak(next);
      scale[side] = scores.rescale(most[side], peak[side]);
      most[side] = next;
    }
    if (__any_sync(kAll, scale[0] != 1 || scale[1] != 1)) {
      total[0] *= scale[0];
      total[2] *= scale[1];
#pragma unroll
      for (int i = 0; i < Dim / 8; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) out[i][j] *= scale[j / 2];
    }
    const uint32_t value = shared_address(values + (stage + lane % 16) * kWidth + lane / 16 * 8);
    const uint32_t one = packed<T>(1, 1);
#pragma unroll
    for (int k = 0; k < int(kTile / 16); ++k) {
      uint32_t left[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* x = &s[2 * k + i / 2][i % 2 * 2];
        left[i] = packed<T>(scores.weight(x[0], peak[i % 2]), scores.weight(x[1], peak[i % 2]));
      }
      multiply_add<T>(total, left, one, one);
#pragma unroll
      for (int i = 0; i < Dim / 16; ++i) {
        uint32_t right[4];
        load_transposed(right, value + (k * 16 * kWidth + i * 16) * sizeof(T));
        multiply_add<T>(out[2 * i], left, right[0], right[1]);
        multiply_add<T>(out[2 * i + 1], left, right[2], right[3]);
      }
    }
  }

  // Adds the split's sums to those of earlier ones.
  __device__ void merge() {
    float mine[2], other[2];
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const float next = fmaxf(whole_most[side], most[side]), peak = scores.peak(next);
      mine[side] = scores.rescale(whole_most[side], peak);
      other[side] = scores.rescale(most[side], peak);
      whole_most[side] = next;
      whole_total[side] = fmaf(total[side * 2], other[side], whole_total[side] * mine[side]);
    }
#pragma unroll
    for (int i = 0; i < Dim / 8; ++i) {
      float4& to = reinterpret_cast<float4*>(whole)[i * 32 + lane];
      const float4 x = to;
      to = {fmaf(out[i][0], other[0], x.x * mine[0]), fmaf(out[i][1], other[0], x.y * mine[0]),
            fmaf(out[i][2], other[1], x.z * mine[1]), fmaf(out[i][3], other[1], x.w * mine[1])};
    }
  }

  __device__ void run() {
    const uint32_t begin = low / kTile, end = (high + kTile - 1) / kTile;
    for (uint32_t t = begin; t < begin + kAhead; ++t) {
      if (t < end) load(t);
      commit_copies();
    }
    take_queries();
#pragma unroll
    for (int i = 0; i < Dim / 8; ++i) reinterpret_cast<float4*>(whole)[i * 32 + lane] = {};
    whole_most[0] = whole_most[1] = -INFINITY;
    whole_total[0] = whole_total[1] = 0;
    clear();
    for (uint32_t t = begin; t < end; ++t) {
      await_copies<kAhead - 1>();
      __syncthreads();
      if (t + kAhead < end) load(t + kAhead);
      commit_copies();
      if (t * kTile <= last_own && (t + 1) * kTile > first_from) attend(t);
      if (t + 1 == end || (t + 1) % (kSplit / kTile) == 0) {
        merge();
        clear();
      }
    }
    finish();
  }

  __device__ void finish() const {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const uint32_t r = warp * 16 + lane / 4 + side * 8;
      if (r >= rows.count) continue;
      const uint32_t t = token(r), column = query_head(r) * Dim;
      const float inverse = __frcp_rn(whole_total[side]);
#pragma unroll
      for (int i = 0; i < Dim / 8; ++i) {
        const float2 x = reinterpret_cast<const float2*>(whole)[(i * 32 + lane) * 2 + side];
        put_pair(a, t, column + i * 8 + lane % 4 * 2, x.x * inverse, x.y * inverse);
      }
    }
  }
};

template <class T, int Dim>
__global__ void __launch_bounds__(TilesLayout<Dim>::kThreads, TilesLayout<Dim>::kResident) attend_tiles(const __grid_constant__ Attention a) {
  extern __shared__ __align__(16) std::byte memory[];
  wait_for_inputs();
  let_next_start();
  Rows rows;
  if (!find_rows(a, blockIdx.y, TilesLayout<Dim>::kRows, rows)) return;
  TilesBlock<T, Dim>(a, rows, blockIdx.x, memory).run();
}

}  // namespace ingot::cuda::paged

// Few rows against many keys, on tensor cores: 16 rows of one head of keys a block, whose four warps share each tile of
// 64 positions, by position for the scores and by element for the output.
#pragma once
#include "attention_call.h"
#include "tensor_core.h"

namespace ingot::cuda::paged {

// Int8: the state's elements are int8, T what they become.
template <class T, bool Int8, int Dim>
struct RowsLayout {
  static constexpr int kRows = 16, kWarps = 4, kThreads = 32 * kWarps, kPad = 8;
  static constexpr int kStages = Int8 ? 1 : Dim <= 128 ? 3 : Dim <= 256 ? 2 : 1;
  static constexpr int kPairs = (Dim / 16 + kWarps - 1) / kWarps;  // runs of 16 elements of an output, a warp
  static constexpr int kScores = kTile + kPad;

  static size_t bytes(uint32_t dim) {
    const size_t row = dim + kPad;
    return (kRows * row + kRows * kScores + kStages * 2 * kTile * row) * sizeof(T) +
           (2 * kWarps * kRows + 2 * kTile) * sizeof(float);
  }
};

template <class T, bool Int8, int Dim>
struct RowsBlock {
  using Layout = RowsLayout<T, Int8, Dim>;
  static constexpr int kPad = Layout::kPad, kWarps = Layout::kWarps, kPairs = Layout::kPairs;

  const Attention& a;
  Rows rows;
  uint32_t head, dim, row_elements, low, high;  // positions [low, high) are read
  T *query, *weights, *keys, *values;
  float *most_of, *sum_of, *key_scales, *value_scales;  // (kWarps, 16), then (kTile)
  uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  struct Sums {
    float most[2], total[2], out[kPairs][2][4];  // of rows lane / 4 and that + 8
    __device__ void clear() {
      most[0] = most[1] = -INFINITY;
      total[0] = total[1] = 0;
#pragma unroll
      for (int i = 0; i < kPairs; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) out[i][j / 4][j % 4] = 0;
    }
  };

  __device__ RowsBlock(const Attention& a, const Rows& rows, uint32_t head, std::byte* memory)
      : a(a), rows(rows), head(head), dim(a.dim), row_elements(a.dim + kPad) {
    query = reinterpret_cast<T*>(memory);
    weights = query + Layout::kRows * row_elements;
    keys = weights + Layout::kRows * Layout::kScores;
    values = keys + Layout::kStages * kTile * row_elements;
    most_of = reinterpret_cast<float*>(values + Layout::kStages * kTile * row_elements);
    sum_of = most_of + kWarps * Layout::kRows;
    key_scales = sum_of + kWarps * Layout::kRows;
    value_scales = key_scales + kTile;
    low = a.sees_from(position(0)) / kPage * kPage;
    high = position(rows.count - 1) + 1;
  }

  __device__ uint32_t token(uint32_t r) const {
    return uint32_t(a.sequence_start[rows.sequence]) + (rows.first + r) / a.group;
  }
  __device__ uint32_t query_head(uint32_t r) const { return head * a.group + (rows.first + r) % a.group; }
  __device__ uint32_t position(uint32_t r) const { return uint32_t(a.positions[token(r)]); }

  // Norms, turns and rounds the rows' queries; keys' memory serves meanwhile.
  __device__ void take_queries() {
    float* buffer = reinterpret_cast<float*>(keys) + warp * dim;
    for (uint32_t r = warp; r < Layout::kRows; r += kWarps) {
      T* to = query + r * row_elements;
      if (r < rows.count) {
        const uint32_t t = token(r);
        take_head(a, a.q + t * a.q_stride + query_head(r) * a.head_dim, a.q_norm, a.positions[t], true, buffer);
      }
      for (uint32_t i = lane; i < dim; i += 32) to[i] = element<T>(r < rows.count ? buffer[i] : 0);
    }
    __syncthreads();
  }

  // Starts copying tile t of keys and values; zeros where the rows see nothing.
  __device__ void load(uint32_t t) {
    const uint32_t stage = t % Layout::kStages * kTile;
    const uint32_t chunks = dim / (Int8 ? 16 : 8);
    for (uint32_t plane = 0; plane < 2; ++plane) {
      T* to = (plane ? values : keys) + stage * row_elements;
      const uint32_t side = plane * a.kv_heads + head;
      for (uint32_t i = threadIdx.x; i < kTile * chunks; i += Layout::kThreads) {
        const uint32_t r = i / chunks, column = i % chunks, p = t * kTile + r;
        const bool present = p >= low && p < high;
        const std::byte* page = present ? a.page(rows.sequence, p) : a.state;
        const std::byte* from = page + (size_t(side) * kPage + p % kPage) * dim * (Int8 ? 1 : sizeof(T)) + column * 16;
        if constexpr (Int8) {
          uint4 bytes = present ? *reinterpret_cast<const uint4*>(from) : uint4{};
          const int8_t* x = reinterpret_cast<const int8_t*>(&bytes);
          uint32_t* wide = reinterpret_cast<uint32_t*>(to + r * row_elements + column * 16);
#pragma unroll
          for (int e = 0; e < 8; ++e) wide[e] = packed<T>(float(x[2 * e]), float(x[2 * e + 1]));
        } else {
          copy_async(shared_address(to + r * row_elements + column * 8), from, present);
        }
      }
      if constexpr (Int8) {
        for (uint32_t r = threadIdx.x; r < kTile; r += Layout::kThreads) {
          const uint32_t p = t * kTile + r;
          const bool present = p >= low && p < high;
          (plane ? value_scales : key_scales)[r] =
              present ? a.scales(a.page(rows.sequence, p))[side * kPage + p % kPage] : 0;
        }
      }
    }
  }

  // Adds tile t to the sums of its split.
  __device__ void attend(uint32_t t, Sums& sums) {
    const uint32_t stage = t % Layout::kStages * kTile;
    float s[2][4] = {};
    const uint32_t key = shared_address(keys + (stage + warp * 16 + lane % 8 + lane / 16 * 8) * row_elements +
                                        lane / 8 % 2 * 8);
    const uint32_t q = shared_address(query + lane % 16 * row_elements + lane / 16 * 8);
#pragma unroll
    for (int k = 0; k < Dim / 16; ++k) {
      if (uint32_t(k) * 16 >= dim) break;
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
      const uint32_t r = lane / 4 + side * 8, column = warp * 16 + i / 4 * 8 + lane % 4 * 2 + i % 2;
      const uint32_t p = t * kTile + column;
      float& x = s[i / 4][i % 4];
      const uint32_t at = r < rows.count ? own[side] : 0;
      if constexpr (Int8) x *= key_scales[column];
      x = p <= at && p >= from[side] ? score(a, x) : -INFINITY;
      most[side] = fmaxf(most[side], x);
    }
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      most[side] = fmaxf(most[side], __shfl_xor_sync(kAll, most[side], 1));
      most[side] = fmaxf(most[side], __shfl_xor_sync(kAll, most[side], 2));
      if (lane % 4 == 0) most_of[warp * 16 + lane / 4 + side * 8] = most[side];
    }
    __syncthreads();
    float scale[2];
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const float* m = most_of + lane / 4 + side * 8;
      const float next = fmaxf(sums.most[side], fmaxf(fmaxf(m[0], m[16]), fmaxf(m[32], m[48])));
      scale[side] = power(sums.most[side] - finite(next));
      sums.most[side] = next;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t column = warp * 16 + i * 8 + lane % 4 * 2;
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        float x = power(s[i][side * 2] - finite(sums.most[side]));
        float y = power(s[i][side * 2 + 1] - finite(sums.most[side]));
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

  __device__ void weigh(uint32_t stage, const float (&scale)[2], Sums& sums) {
    float total[4] = {sums.total[0] * scale[0], 0, sums.total[1] * scale[1], 0};
#pragma unroll
    for (int i = 0; i < kPairs; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j) sums.out[i][j / 4][j % 4] *= scale[j / 2 % 2];
    const uint32_t w = shared_address(weights + lane % 16 * Layout::kScores + lane / 16 * 8);
    const uint32_t value = shared_address(values + (stage + lane % 16) * row_elements + lane / 16 * 8);
    const uint32_t one = packed<T>(1, 1);
#pragma unroll
    for (int k = 0; k < int(kTile / 16); ++k) {
      uint32_t left[4];
      load_matrices(left, w + k * 32);
      if constexpr (!Int8) multiply_add<T>(total, left, one, one);
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        const uint32_t pair = i * kWarps + warp;
        if (pair * 16 >= dim) break;
        uint32_t right[4];
        load_transposed(right, value + k * 16 * row_elements * 2 + pair * 32);
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

  // Adds a later split.
  __device__ static void merge(Sums& to, const Sums& later) {
    float mine[2], other[2];
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const float most = fmaxf(to.most[side], later.most[side]);
      mine[side] = power(to.most[side] - finite(most));
      other[side] = power(later.most[side] - finite(most));
      to.most[side] = most;
      to.total[side] = fmaf(later.total[side], other[side], to.total[side] * mine[side]);
    }
#pragma unroll
    for (int i = 0; i < kPairs; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int side = j / 2 % 2;
        float& x = to.out[i][j / 4][j % 4];
        x = fmaf(later.out[i][j / 4][j % 4], other[side], x * mine[side]);
      }
  }

  __device__ void finish(const Sums& sums) const {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const uint32_t r = lane / 4 + side * 8;
      if (r >= rows.count) continue;
      const uint32_t t = token(r), column = query_head(r) * a.head_dim;
      const float inverse = __frcp_rn(sums.total[side]);
#pragma unroll
      for (int i = 0; i < kPairs; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const uint32_t d = (i * kWarps + warp) * 16 + j / 2 * 8 + lane % 4 * 2 + j % 2;
          if (d < a.head_dim) put_out(a, t, column + d, sums.out[i][j / 2][side * 2 + j % 2] * inverse);
        }
    }
  }

  uint32_t own[2], from[2];  // position of this lane's rows, and the first that they see

  __device__ void run() {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const uint32_t r = lane / 4 + side * 8;
      own[side] = r < rows.count ? position(r) : 0;
      from[side] = a.sees_from(own[side]);
    }
    take_queries();
    const uint32_t first = low / kTile, end = (high + kTile - 1) / kTile;
    Sums whole, sums;
    whole.clear();
    sums.clear();
    constexpr uint32_t ahead = Layout::kStages - 1;
    if constexpr (!Int8) {
      for (uint32_t t = first; t < first + ahead; ++t) {
        if (t < end) load(t);
        commit_copies();
      }
    }
    for (uint32_t t = first; t < end; ++t) {
      if constexpr (ahead == 0) {
        __syncthreads();
        load(t);
        commit_copies();
        await_copies<0>();
        __syncthreads();
      } else {
        await_copies<ahead - 1>();
        __syncthreads();
        if (t + ahead < end) load(t + ahead);
        commit_copies();
      }
      attend(t, sums);
      if (t + 1 == end || (t + 1) % (kSplit / kTile) == 0) {
        merge(whole, sums);
        sums.clear();
      }
    }
    finish(whole);
  }
};

template <class T, bool Int8, int Dim>
__global__ void __launch_bounds__(128) attend_rows(const __grid_constant__ Attention a) {
  extern __shared__ __align__(16) std::byte memory[];
  wait_for_inputs();
  let_next_start();
  Rows rows;
  if (!find_rows(a, blockIdx.x, RowsLayout<T, Int8, Dim>::kRows, rows)) return;
  RowsBlock<T, Int8, Dim>(a, rows, blockIdx.y, memory).run();
}

}  // namespace ingot::cuda::paged

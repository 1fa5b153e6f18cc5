// Few rows against many keys, on tensor cores: 16 rows of one head of keys a block, whose four warps share each tile of
// 64 positions, by position for the scores and by element for the output. While decoding, a sequence's splits may part
// over blocks, each stores its splits' sums, and the one that arrives last merges them in order.
#pragma once
#include "attention_call.h"

namespace ingot::cuda::paged {

// How a decode step's work is cut, and where sums meet: counters of (item), then sums of (item, split).
struct Parts {
  uint32_t parts, splits;  // blocks of an item; splits of one at most
  uint32_t* counters;
  float* sums;
};

// Int8: the state's elements are int8, T what they become. Exact: heads of Dim elements, not of fewer. Lean: of heads of up
// to 128, two tiles in shared memory and not three, for few sequences and for devices that have less.
template <class T, bool Int8, int Dim, bool Exact, bool Decode, bool Lean>
struct RowsLayout {
  static constexpr int kRows = 16, kWarps = 4, kThreads = 32 * kWarps, kPad = 8;
  // Whether a block takes two tiles at once, and reads the next keys while values are weighed: fewer steps in lock. Each
  // tile is weighed by itself, in order, and one beyond the sequence or its window adds nothing: the bits are the same.
  static constexpr bool kSpans = Decode && Exact && !Int8 && (Dim == 64 || Lean);
  static constexpr int kStages = kSpans ? 2 : Int8 || Dim > 256 ? 1 : Dim == 128 && !Lean ? 3 : 2;
  static constexpr int kPairs = (Dim / 16 + kWarps - 1) / kWarps;  // runs of 16 elements of an output, a warp
  static constexpr int kScores = (kSpans ? kStages : 1) * kTile + kPad;

  static size_t bytes(const Attention& a) {
    const size_t row = a.dim + kPad;
    return (kRows * row + kRows * kScores + kStages * 2 * kTile * row + 2 * a.dim) * sizeof(T) +
           (2 * kWarps * kRows + 2 * kTile + 4 + kWarps * a.dim + (Decode ? 1 : kWarps) * 2 * a.pairs) * sizeof(float);
  }
};

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

template <class T, bool Int8, int Dim, bool Exact, bool Decode, bool Lean>
struct RowsBlock {
  using Layout = RowsLayout<T, Int8, Dim, Exact, Decode, Lean>;
  using Sums = RowSums<Layout::kPairs>;
  static constexpr int kPad = Layout::kPad, kWarps = Layout::kWarps, kPairs = Layout::kPairs, kRows = Layout::kRows;
  static constexpr uint32_t kAhead = Layout::kStages - 1, kTilesOfSplit = kSplit / kTile;

  const Attention& a;
  const Rows rows;
  const uint32_t head, dim, width;  // width: elements from row to row in shared memory
  const Scores scores;
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int32_t* const table;  // blocks of the sequence
  uint32_t low, high, last;    // positions [low, high) are read from the state; `last` is the newest row's
  uint32_t own[2], from[2];    // position of this lane's rows, and the first that they see
  T *query, *weights, *keys, *values, *fresh;
  float *most_of, *sum_of, *key_scales, *value_scales, *fresh_scales, *buffer;
  float2* angles;
  bool appends;  // the newest position, which this step brings, is this block's

  __device__ RowsBlock(const Attention& a, const Rows& rows, uint32_t head, std::byte* memory)
      : a(a), rows(rows), head(head), dim(Exact ? Dim : a.dim), width(dim + kPad), scores(a),
        table(a.block_table + size_t(rows.sequence) * a.blocks_per_sequence) {
    query = reinterpret_cast<T*>(memory);
    weights = query + kRows * width;
    keys = weights + kRows * Layout::kScores;
    values = keys + Layout::kStages * kTile * width;
    fresh = values + Layout::kStages * kTile * width;
    most_of = reinterpret_cast<float*>(fresh + 2 * dim);
    sum_of = most_of + kWarps * kRows;
    key_scales = sum_of + kWarps * kRows;
    value_scales = key_scales + kTile;
    fresh_scales = value_scales + kTile;
    buffer = fresh_scales + 4 + warp * dim;
    angles = reinterpret_cast<float2*>(fresh_scales + 4 + kWarps * dim) + (Decode ? 0 : warp * a.pairs);
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const uint32_t r = lane / 4 + side * 8;
      own[side] = r < rows.count ? position(r) : 0;
      from[side] = a.sees_from(own[side]);
    }
    low = a.sees_from(position(0)) / kPage * kPage;
    last = position(rows.count - 1);
    high = Decode ? last : last + 1;
  }

  __device__ uint32_t token(uint32_t r) const {
    return Decode ? rows.sequence : uint32_t(a.sequence_start[rows.sequence]) + (rows.first + r) / a.group;
  }
  __device__ uint32_t query_head(uint32_t r) const { return head * a.group + (rows.first + r) % a.group; }
  __device__ uint32_t position(uint32_t r) const { return uint32_t(a.positions[token(r)]); }

  // Norms, turns and rounds the rows' queries; while decoding, the new key and value too, and stores these.
  __device__ void take_heads() {
    constexpr int kTasks = (kRows + (Decode ? 2 : 0) + kWarps - 1) / kWarps;
    Lanes<Dim / 32> heads[kTasks];
#pragma unroll
    for (int i = 0; i < kTasks; ++i) {
      const uint32_t task = order(i), t = token(0);
      if (task < rows.count) heads[i].read(a, a.q + token(task) * a.q_stride + query_head(task) * a.head_dim);
      else if (appends && task == kRows) heads[i].read(a, a.k + t * a.k_stride + head * a.head_dim);
      else if (appends && task == kRows + 1) heads[i].read(a, a.v + t * a.v_stride + head * a.head_dim);
    }
    if constexpr (!Decode) find_angles(a, int32_t(position(min(order(0), rows.count - 1))), angles, lane, 32);
#pragma unroll
    for (int i = 0; i < kTasks; ++i) {
      const uint32_t task = order(i);
      const bool real = task < rows.count;
      if (!real && !(appends && task >= kRows && task < kRows + 2)) {
        for (uint32_t d = lane; task < kRows && d < dim; d += 32) query[task * width + d] = element<T>(0);
        continue;
      }
      __syncwarp();
      heads[i].write(a, buffer);
      if constexpr (!Decode) {
        if (i && token(task) != token(order(i - 1))) {
          __syncwarp();
          find_angles(a, int32_t(position(task)), angles, lane, 32);
        }
      }
      if (task <= kRows) turn(a, buffer, real ? a.q_norm : a.k_norm, angles);
      __syncwarp();
      if (real) {
        for (uint32_t d = lane; d < dim; d += 32) query[task * width + d] = element<T>(buffer[d]);
      } else {
        append(task - kRows);
      }
    }
  }
  // Task i of this warp. Rows of a token lie together; while decoding, few rows are spread.
  __device__ uint32_t order(int i) const { return Decode ? i * kWarps + warp : warp * (kRows / kWarps) + i; }

  __device__ void append(uint32_t plane) {
    if (rows.first == 0) store_head(a, rows.sequence, last, plane, head, buffer);
    float most = 0;
    if constexpr (Int8) most = head_scale(a, buffer);
    for (uint32_t d = lane; d < dim; d += 32)
      fresh[plane * dim + d] = element<T>(Int8 ? float(quantized(buffer[d], most)) : buffer[d]);
    if (Int8 && lane == 0) fresh_scales[plane] = most / 127.0f;
  }

  // Puts the new key (plane 0) or value where tile t has room for it.
  __device__ void place(uint32_t t, uint32_t plane) {
    if (!appends || last / kTile != t) return;
    T* to = (plane ? values : keys) + (t % Layout::kStages * kTile + last % kTile) * width;
    for (uint32_t i = threadIdx.x * 8; i < dim; i += Layout::kThreads * 8)
      *reinterpret_cast<uint4*>(to + i) = *reinterpret_cast<const uint4*>(fresh + plane * dim + i);
    if (Int8 && threadIdx.x == 0) (plane ? value_scales : key_scales)[last % kTile] = fresh_scales[plane];
  }

  // Starts copying tile t of keys or values; zeros where the rows see nothing.
  __device__ void load(uint32_t t, uint32_t plane) {
    const uint32_t stage = t % Layout::kStages * kTile, chunks = dim / (Int8 ? 16 : 8), all = kTile * chunks;
    constexpr size_t bytes = Int8 ? 1 : sizeof(T);
    static_assert(kTile == 2 * kPage);
    const std::byte* pages[2];
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
      const uint32_t p = t * kTile + i * kPage;
      pages[i] = a.state + (p >= low && p < high ? size_t(table[p / kPage]) * a.unit : 0);
    }
    T* to = (plane ? values : keys) + stage * width;
    const uint32_t side = plane * a.kv_heads + head;
    const size_t offset = size_t(side) * kPage * dim * bytes;
    if constexpr (Exact && !Int8 && !Lean) {
      if (t * kTile >= low && (t + 1) * kTile <= high)
        return copy_tile<Dim, Layout::kThreads>(shared_address(to), pages, offset);
    }
#pragma unroll(Exact ? kTile * Dim / (Int8 ? 16 : 8) / Layout::kThreads : 1)
    for (uint32_t i = threadIdx.x; i < all; i += Layout::kThreads) {
      const uint32_t r = i / chunks, column = i % chunks, p = t * kTile + r;
      const bool present = p >= low && p < high;
      if (Decode && p == last) continue;
      const std::byte* from = (r < kPage ? pages[0] : pages[1]) + offset + (r % kPage * dim * bytes + column * 16);
      if constexpr (Int8) {
        const uint4 packed_bytes = present ? *reinterpret_cast<const uint4*>(from) : uint4{};
        const int8_t* x = reinterpret_cast<const int8_t*>(&packed_bytes);
        uint32_t* wide = reinterpret_cast<uint32_t*>(to + r * width + column * 16);
#pragma unroll
        for (int e = 0; e < 8; ++e) wide[e] = packed<T>(float(x[2 * e]), float(x[2 * e + 1]));
      } else {
        copy_async(shared_address(to + r * width + column * 8), present ? from : a.state, present);
      }
    }
    if constexpr (Int8) {
      for (uint32_t r = threadIdx.x; r < kTile; r += Layout::kThreads) {
        const uint32_t p = t * kTile + r;
        if (Decode && p == last) continue;
        (plane ? value_scales : key_scales)[r] =
            p >= low && p < high ? a.scales(r < kPage ? pages[0] : pages[1])[side * kPage + p % kPage] : 0;
      }
    }
  }
  __device__ void load(uint32_t t) {
    load(t, 0);
    load(t, 1);
  }
  __device__ void place(uint32_t t) {
    place(t, 0);
    place(t, 1);
  }
  // The same of a span.
  __device__ void load_span(uint32_t t, uint32_t plane) {
#pragma unroll
    for (uint32_t i = 0; i < uint32_t(Layout::kStages); ++i) load(t + i, plane);
    commit_copies();
  }

  // As `attend` and `sweep`, for two tiles at once: a warp scores 32 positions.
  template <class F>
  __device__ void sweep_spans(uint32_t begin, uint32_t end, const F& done) {
    constexpr uint32_t span = Layout::kStages;
    static_assert(!Layout::kSpans || span == 2);
    Sums sums;
    sums.clear();
    const uint32_t column = warp * 32;
    const uint32_t key = shared_address(keys + (column + lane % 8 + lane / 16 * 8) * width + lane / 8 % 2 * 8);
    const uint32_t q = shared_address(query + lane % 16 * width + lane / 16 * 8);
    for (uint32_t t = begin; t < end; t += span) {
      await_copies<1>();
      __syncthreads();
      float s[4][4] = {};
#pragma unroll
      for (int k = 0; k < Dim / 16; ++k) {
        uint32_t left[4];
        load_matrices(left, q + k * 32);
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          uint32_t right[4];
          load_matrices(right, key + n * 16 * width * 2 + k * 32);
          multiply_add<T>(s[2 * n], left, right[0], right[1]);
          multiply_add<T>(s[2 * n + 1], left, right[2], right[3]);
        }
      }
      float most[2] = {-INFINITY, -INFINITY};
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const int side = i / 2 % 2;
        const uint32_t p = t * kTile + column + i / 4 * 8 + lane % 4 * 2 + i % 2;
        float& x = s[i / 4][i % 4];
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
      if (t + span < end) {
        load_span(t + span, 0);
        for (uint32_t i = 0; i < span; ++i) place(t + span + i, 0);
      } else {
        commit_copies();
      }
      float scale[2][2], peak[2];  // of each tile; of this warp's
#pragma unroll
      for (int tile = 0; tile < 2; ++tile)
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          const float* m = most_of + tile * 32 + lane / 4 + side * 8;
          const float next = fmaxf(sums.most[side], fmaxf(m[0], m[16])), its = scores.peak(next);
          scale[tile][side] = scores.rescale(sums.most[side], its);
          sums.most[side] = next;
          if (tile == 0 || warp >= 2) peak[side] = its;
        }
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int side = 0; side < 2; ++side)
          *reinterpret_cast<uint32_t*>(weights + (lane / 4 + side * 8) * Layout::kScores + column + i * 8 +
                                       lane % 4 * 2) =
              packed<T>(scores.weight(s[i][side * 2], peak[side]), scores.weight(s[i][side * 2 + 1], peak[side]));
      await_copies<1>();
      __syncthreads();
#pragma unroll
      for (uint32_t tile = 0; tile < span; ++tile) weigh(tile * kTile, scale[tile], sums, tile * kTile);
      __syncthreads();
      if (t + span < end) {
        load_span(t + span, 1);
        for (uint32_t i = 0; i < span; ++i) place(t + span + i, 1);
      } else {
        commit_copies();
      }
      if (t + span >= end || (t + span) % kTilesOfSplit == 0) {
        done(t / kTilesOfSplit, sums);
        sums.clear();
      }
    }
  }

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
  __device__ void start(uint32_t begin, uint32_t end) {
    if constexpr (Layout::kSpans) {
      load_span(begin, 0);
      load_span(begin, 1);
    } else {
      for (uint32_t t = begin; t < begin + kAhead; ++t) {
        if (t < end) load(t);
        commit_copies();
      }
    }
  }
  // Tile t, where a block starts at tile `begin`, was started before the new key was there.
  __device__ void place_started(uint32_t begin, uint32_t end) {
    for (uint32_t t = begin; t < begin + (Layout::kSpans ? Layout::kStages : kAhead) && t < end; ++t) place(t);
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
    const uint32_t begin = Layout::kSpans ? from_tile / Layout::kStages * Layout::kStages : from_tile;
    const uint32_t end = min(last / kTile + 1, to_split * kTilesOfSplit);
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
    const uint32_t stride = min(a.group, uint32_t(kRows)) * (dim + 2);
    float* slots = parts.sums + size_t(item) * parts.splits * stride;
    Sums whole;
    whole.clear();
    const auto done = [&](uint32_t split, const Sums& sums) {
      if (used == 1) return whole.merge(scores, sums);
      float* slot = slots + size_t(split - first) * stride;
      each(sums, [&](int, uint32_t r, uint32_t d, float x) { slot[2 * rows.count + r * dim + d] = x; });
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const uint32_t r = lane / 4 + side * 8;
        if (warp || lane % 4 || r >= rows.count) continue;
        slot[2 * r] = sums.most[side];
        slot[2 * r + 1] = sums.total[side];
      }
    };
    if constexpr (Layout::kSpans) sweep_spans(begin, end, done);
    else sweep(begin, end, done);
    if (used == 1) return finish(whole);
    if (arrives_last(parts.counters + item, used)) merge_slots(slots, stride, splits);
  }

  __device__ bool arrives_last(uint32_t* counter, uint32_t all) {
    __threadfence();
    __syncthreads();
    uint32_t* flag = reinterpret_cast<uint32_t*>(fresh_scales + 2);
    if (threadIdx.x == 0) {
      *flag = atomicAdd(counter, 1) + 1 == all;
      if (*flag) *counter = 0;
    }
    __syncthreads();
    __threadfence();
    return *flag;
  }

  __device__ void merge_slots(const float* slots, uint32_t stride, uint32_t splits) const {
    for (uint32_t i = threadIdx.x; i < rows.count * dim; i += Layout::kThreads) {
      const uint32_t r = i / dim, d = i % dim;
      float most = -INFINITY, total = 0, out = 0;
#pragma unroll 4
      for (uint32_t s = 0; s < splits; ++s) {
        const float* slot = slots + size_t(s) * stride;
        const float2 later = __ldcg(reinterpret_cast<const float2*>(slot) + r);
        const float x = __ldcg(slot + 2 * rows.count + i);
        const float next = fmaxf(most, later.x), peak = scores.peak(next);
        const float mine = scores.rescale(most, peak), other = scores.rescale(later.x, peak);
        most = next;
        total = fmaf(later.y, other, total * mine);
        out = fmaf(x, other, out * mine);
      }
      if (d < a.head_dim) put_out(a, token(r), query_head(r) * a.head_dim + d, out * __frcp_rn(total));
    }
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

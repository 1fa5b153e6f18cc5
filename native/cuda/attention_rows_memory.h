// What a block of attention_rows.h holds in shared memory, and how it gets there: queries, tiles of keys and values,
// and, while decoding, the key and value that the step brings.
#pragma once
#include "attention_call.h"

namespace ingot::cuda::paged {

// Int8: the state's elements are int8, T what they become. Exact: heads of Dim elements, not of fewer. Lean: of heads
// of up to 128, two tiles in shared memory and not three, for devices that have less.
template <class T, bool Int8, int Dim, bool Exact, bool Decode, bool Lean>
struct RowsLayout {
  static constexpr int kRows = 16, kWarps = 4, kThreads = 32 * kWarps, kPad = 8;
  static constexpr int kStages = Int8 || Dim > 256 ? 1 : Dim == 128 && !Lean ? 3 : 2;
  static constexpr int kPairs = (Dim / 16 + kWarps - 1) / kWarps;  // runs of 16 elements of an output, a warp
  static constexpr int kScores = kTile + kPad;

  static size_t bytes(const Attention& a) {
    const size_t row = a.dim + kPad;
    return (kRows * row + kRows * kScores + kStages * 2 * kTile * row + 2 * a.dim) * sizeof(T) +
           (2 * kWarps * kRows + 2 * kTile + 4 + kWarps * a.dim + (Decode ? 1 : kWarps) * 2 * a.pairs) * sizeof(float);
  }
};

template <class T, bool Int8, int Dim, bool Exact, bool Decode, bool Lean>
struct RowsMemory {
  using Layout = RowsLayout<T, Int8, Dim, Exact, Decode, Lean>;
  static constexpr int kPad = Layout::kPad, kWarps = Layout::kWarps, kRows = Layout::kRows;
  static constexpr uint32_t kAhead = Layout::kStages - 1;

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

  __device__ RowsMemory(const Attention& a, const Rows& rows, uint32_t head, std::byte* memory)
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
  // The first tiles of a block's.
  __device__ void start(uint32_t begin, uint32_t end) {
    for (uint32_t t = begin; t < begin + kAhead; ++t) {
      if (t < end) load(t);
      commit_copies();
    }
  }
  // Tile t, where a block starts at tile `begin`, was started before the new key was there.
  __device__ void place_started(uint32_t begin, uint32_t end) {
    for (uint32_t t = begin; t < begin + kAhead && t < end; ++t) place(t);
  }
};

}  // namespace ingot::cuda::paged

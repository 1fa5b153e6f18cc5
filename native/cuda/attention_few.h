// Decoding of few sequences, where latency counts and nothing else: a block takes one head of keys of one sequence, for
// up to 16 of the heads of queries that share it, in one or more of its splits, whose sums the last of the item's
// blocks merges. Sums are those of attention_rows.h. The code is short: a block runs it once, and fetching it waits
// behind the weights that products read beside it.
#pragma once
#include "attention_rows.h"
#include "hopper.h"

namespace ingot::cuda::paged {

template <class T, int Dim>
struct FewLayout {
  static constexpr uint32_t kRows = 16, kWarps = 4, kThreads = 32 * kWarps;
  static constexpr uint32_t kWidth = Dim + 8, kWeights = kSplit + 8;  // elements from row to row in shared memory
  static constexpr size_t kBytes = (kRows * (kWidth + kWeights) + 2 * kSplit * kWidth + 2 * Dim) * sizeof(T) +
                                   (kWarps * (kRows + Dim) + Dim) * sizeof(float);
  static constexpr uint32_t kMostParts = 8;  // of a cluster
  // Of one split in a cluster: largest scores and totals by row, then sums.
  static __host__ __device__ uint32_t sent_floats(uint32_t rows) { return rows * (2 + Dim); }
};

#ifdef INGOT_HOPPER
// Where sums of splits meet in the memory of the cluster's block that merges them. They do not queue behind the weights
// that products beside it read, as what lies in global memory does.
template <class Layout, int Dim>
struct Sent {
  float* sums;
  Barrier* arrived;  // just before them
  uint32_t rows;

  __device__ Sent(std::byte* memory, uint32_t rows)
      : sums(reinterpret_cast<float*>(memory + 16)), arrived(reinterpret_cast<Barrier*>(memory)), rows(rows) {}
  // The block that merges awaits `splits` of others.
  __device__ void open(uint32_t splits) const {
    init(*arrived, 1);
    expect(*arrived, splits * Layout::sent_floats(rows) * uint32_t(sizeof(float)));
    fence_barriers();
  }
  __device__ float* row(uint32_t split, uint32_t r) const { return sums + split * Layout::sent_floats(rows) + 2 * r; }
  __device__ float* element(uint32_t split, uint32_t r, uint32_t d) const {
    return sums + split * Layout::sent_floats(rows) + 2 * rows + r * Dim + d;
  }
  __device__ void post(uint32_t block, float* to, float x, float y) const {
    send(address_in(to, block), x, y, address_in(arrived, block));
  }
};
#endif

template <class T, int Dim>
struct FewBlock {
  using Layout = FewLayout<T, Dim>;
  static constexpr uint32_t kRows = Layout::kRows, kWarps = Layout::kWarps, kThreads = Layout::kThreads;
  static constexpr uint32_t kWidth = Layout::kWidth, kWeights = Layout::kWeights, kChunks = Dim / 8;
  static constexpr int kPairs = Dim / 16 / kWarps;  // runs of 16 elements of an output, a warp
  using Sums = RowSums<kPairs>;

  const Attention& a;
  const Scores scores;
  const uint32_t head, sequence, row, rows;  // the first of the heads of queries, of the group, and how many
  const uint32_t last, from, low;  // the newest position, the first that it sees, and that of its page
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  T *query, *weights, *keys, *values, *fresh;
  float *most_of, *buffer;
  float2* angles;
  std::byte* const memory;
  bool appends;  // the newest position, which this step brings, is this block's

  __device__ FewBlock(const Attention& a, uint32_t head, uint32_t sequence, uint32_t row, std::byte* memory)
      : a(a), scores(a), head(head), sequence(sequence), row(row), rows(min(kRows, a.group - row)),
        last(uint32_t(a.positions[sequence])), from(a.sees_from(last)), low(from / kPage * kPage), memory(memory) {
    query = reinterpret_cast<T*>(memory);
    weights = query + kRows * kWidth;
    keys = weights + kRows * kWeights;
    values = keys + kSplit * kWidth;
    fresh = values + kSplit * kWidth;
    most_of = reinterpret_cast<float*>(fresh + 2 * Dim);
    buffer = most_of + kWarps * kRows + warp * Dim;
    angles = reinterpret_cast<float2*>(most_of + kWarps * (kRows + Dim));
  }

  // Starts copying the keys and the values of a split, all but the newest; zeros where nothing is seen.
  __device__ void copy_split(uint32_t split) const {
    const uint32_t page = split * (kSplit / kPage) + lane % 4, first = page * kPage;
    const int32_t* table = a.block_table + size_t(sequence) * a.blocks_per_sequence;
    const uint32_t block = first >= low && first < last ? uint32_t(table[page]) : 0;
    const uint32_t r = threadIdx.x / kChunks, column = threadIdx.x % kChunks * 8;
#pragma unroll 1
    for (uint32_t plane = 0; plane < 2; ++plane) {
      T* to = (plane ? values : keys) + r * kWidth + column;
      const size_t side = size_t(plane * a.kv_heads + head) * kPage;
#pragma unroll 4
      for (uint32_t i = 0; i < kSplit; i += kThreads / kChunks) {
        const uint32_t at = i + r, p = split * kSplit + at;
        const std::byte* unit = a.state + size_t(__shfl_sync(kAll, block, i / kPage)) * a.unit;
        const T* source = reinterpret_cast<const T*>(unit) + (side + at % kPage) * Dim + column;
        const bool seen = p >= low && p < last;
        const void* readable = seen ? static_cast<const void*>(source) : a.state;
        if (p != last) copy_async(shared_address(to + i * kWidth), readable, seen);
      }
      commit_copies();
    }
  }

  __device__ const float* source(uint32_t task) const {
    if (task < rows) return a.q + sequence * a.q_stride + (head * a.group + row + task) * Dim;
    return (task == rows ? a.k + sequence * a.k_stride : a.v + sequence * a.v_stride) + head * Dim;
  }
  // Norms, turns and rounds the queries, and the new key and value, which it stores: a head a warp, the next under way.
  __device__ void take_heads(T* stored) const {
    const uint32_t tasks = rows + (appends ? 2 : 0);
    Lanes<Dim / 32> next;
    if (warp < tasks) next.read(a, source(warp));
#pragma unroll 1
    for (uint32_t task = warp; task < tasks; task += kWarps) {
      const Lanes<Dim / 32> now = next;
      if (task + kWarps < tasks) next.read(a, source(task + kWarps));
      __syncwarp();
      now.write(a, buffer);
      __syncwarp();
      if (task <= rows) turn(a, buffer, task < rows ? a.q_norm : a.k_norm, angles);
      const uint32_t plane = task - rows;
      T* to = task < rows ? query + task * kWidth : fresh + plane * Dim;
      T* store = stored + size_t(plane) * a.kv_heads * kPage * Dim;
#pragma unroll
      for (uint32_t d = lane; d < Dim; d += 32) {
        to[d] = element<T>(buffer[d]);
        if (task >= rows && row == 0) store[d] = to[d];
      }
    }
  }
  // Puts the new key and value where they belong in their split.
  __device__ void place() const {
    const uint32_t plane = threadIdx.x / kChunks, run = threadIdx.x % kChunks * 8;
    if (plane < 2)
      *reinterpret_cast<uint4*>((plane ? values : keys) + last % kSplit * kWidth + run) =
          *reinterpret_cast<const uint4*>(fresh + plane * Dim + run);
  }

  // Weighs the values of a split; `sums` are the split's alone. Each warp scores 32 positions, and sums its elements of
  // all of them.
  __device__ void attend(uint32_t split, bool copies_next, Sums& sums) const {
    sums.clear();
    await_copies<1>();
    __syncthreads();
    float s[4][4];
    score(split, s);
    float most[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int i = 0; i < 16; ++i) most[i / 2 % 2] = fmaxf(most[i / 2 % 2], s[i / 4][i % 4]);
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      most[side] = fmaxf(most[side], __shfl_xor_sync(kAll, most[side], 1));
      most[side] = fmaxf(most[side], __shfl_xor_sync(kAll, most[side], 2));
      if (lane % 4 == 0) most_of[warp * 16 + lane / 4 + side * 8] = most[side];
    }
    __syncthreads();
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
        *reinterpret_cast<uint32_t*>(weights + (lane / 4 + side * 8) * kWeights + warp * 32 + i * 8 + lane % 4 * 2) =
            packed<T>(scores.weight(s[i][side * 2], peak[side]), scores.weight(s[i][side * 2 + 1], peak[side]));
    await_copies<0>();
    __syncthreads();
#pragma unroll 1
    for (uint32_t tile = 0; tile < 2; ++tile)
      weigh(tile * kTile, tile ? scale[1][0] : scale[0][0], tile ? scale[1][1] : scale[0][1], sums);
    if (!copies_next) return;
    __syncthreads();
    copy_split(split + 1);
  }
  __device__ void score(uint32_t split, float (&s)[4][4]) const {
    const uint32_t key = shared_address(keys + (warp * 32 + lane % 8 + lane / 16 * 8) * kWidth + lane / 8 % 2 * 8);
    const uint32_t q = shared_address(query + lane % 16 * kWidth + lane / 16 * 8);
#pragma unroll
    for (int i = 0; i < 16; ++i) s[i / 4][i % 4] = 0;
#pragma unroll
    for (int k = 0; k < Dim / 16; ++k) {
      uint32_t left[4];
      load_matrices(left, q + k * 32);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        uint32_t right[4];
        load_matrices(right, key + n * 16 * kWidth * 2 + k * 32);
        multiply_add<T>(s[2 * n], left, right[0], right[1]);
        multiply_add<T>(s[2 * n + 1], left, right[2], right[3]);
      }
    }
    if (!scores.plain)
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const float x = s[i / 4][i % 4];
        s[i / 4][i % 4] = a.softcap > 0 ? softcap(x * a.scale, a.softcap) : x * a.scale;
      }
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const uint32_t p = split * kSplit + warp * 32 + i / 4 * 8 + lane % 4 * 2 + i % 2;
      if (p > last || p < from) s[i / 4][i % 4] = -INFINITY;
    }
  }
  // Totals are a product, too, with a column of ones.
  __device__ void weigh(uint32_t column, float low_scale, float high_scale, Sums& sums) const {
    float total[4] = {sums.total[0] * low_scale, 0, sums.total[1] * high_scale, 0};
#pragma unroll
    for (int i = 0; i < kPairs; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j) sums.out[i][j / 4][j % 4] *= j / 2 % 2 ? high_scale : low_scale;
    const uint32_t w = shared_address(weights + lane % 16 * kWeights + column + lane / 16 * 8);
    const uint32_t value = shared_address(values + (column + lane % 16) * kWidth + lane / 16 * 8 + warp * 16);
    const uint32_t one = packed<T>(1, 1);
#pragma unroll
    for (int k = 0; k < int(kTile / 16); ++k) {
      uint32_t left[4];
      load_matrices(left, w + k * 32);
      multiply_add<T>(total, left, one, one);
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        uint32_t right[4];
        load_transposed(right, value + k * 16 * kWidth * 2 + i * kWarps * 32);
        multiply_add<T>(sums.out[i][0], left, right[0], right[1]);
        multiply_add<T>(sums.out[i][1], left, right[2], right[3]);
      }
    }
    sums.total[0] = total[0];
    sums.total[1] = total[2];
  }

  // Calls f(side, row, element, x, y) for each two neighbours of this lane's sums.
  template <class F>
  __device__ void each(const Sums& sums, const F& f) const {
#pragma unroll
    for (int side = 0; side < 2; ++side)
#pragma unroll
      for (int i = 0; i < kPairs; ++i)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const uint32_t r = lane / 4 + side * 8, d = (i * kWarps + warp) * 16 + j * 8 + lane % 4 * 2;
          if (r < rows) f(side, r, d, sums.out[i][j][side * 2], sums.out[i][j][side * 2 + 1]);
        }
  }
  __device__ void put(uint32_t r, uint32_t d, float x, float y) const {
    put_pair(a, sequence, (head * a.group + row + r) * Dim + d, x, y);
  }
  __device__ void finish(const Sums& sums) const {
    const float inverse[2] = {__frcp_rn(sums.total[0]), __frcp_rn(sums.total[1])};
    each(sums, [&](int side, uint32_t r, uint32_t d, float x, float y) {
      put(r, d, x * inverse[side], y * inverse[side]);
    });
  }
  __device__ void post_sums(uint4* slot, const Sums& sums) const {
    each(sums, [&](int side, uint32_t r, uint32_t d, float x, float y) {
      post(slot + (r * Dim + d) / 2, x, y, sums.most[side], sums.total[side]);
    });
  }
#ifdef INGOT_HOPPER
  using Meeting = Sent<Layout, Dim>;
  // To the block of the cluster that merges, or, by that itself, where it finds them.
  __device__ void send_sums(const Meeting& meeting, uint32_t block, uint32_t split, const Sums& sums) const {
    const auto put_two = [&](float* to, float x, float y) {
      if (appends) *reinterpret_cast<float2*>(to) = {x, y};
      else meeting.post(block, to, x, y);
    };
    each(sums, [&](int side, uint32_t r, uint32_t d, float x, float y) {
      if (d == 0) put_two(meeting.row(split, r), sums.most[side], sums.total[side]);
      put_two(meeting.element(split, r, d), x, y);
    });
  }
  __device__ void merge_sent(const Meeting& meeting, uint32_t splits) const {
    wait(*meeting.arrived, 0);
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < rows * Dim / 2; i += kThreads) {
      const uint32_t r = 2 * i / Dim, d = 2 * i % Dim;
      Merged merged;
#pragma unroll 4
      for (uint32_t split = 0; split < splits; ++split) {
        const float2 row = *reinterpret_cast<const float2*>(meeting.row(split, r));
        const float2 two = *reinterpret_cast<const float2*>(meeting.element(split, r, d));
        merged.add(scores, row.x, row.y, two.x, two.y);
      }
      const float inverse = __frcp_rn(merged.total);
      put(r, d, merged.x * inverse, merged.y * inverse);
    }
  }
#endif
  __device__ void merge(uint4* slots, uint32_t pairs, uint32_t splits) const {
    merge_posted(scores, slots, pairs, splits, rows * Dim / 2,
                 [&](uint32_t i, float x, float y) { put(2 * i / Dim, 2 * i % Dim, x, y); });
  }

  // A part of the splits; `item` is the head and the rows, of which each part has a block.
  __device__ void run(const Parts& parts, uint32_t part, uint32_t item) {
    const uint32_t first = low / kSplit, splits = last / kSplit + 1 - first;
    const uint32_t each_part = (splits + parts.parts - 1) / parts.parts, used = (splits + each_part - 1) / each_part;
    const uint32_t begin = first + part * each_part, end = min(begin + each_part, first + splits);
    appends = part + 1 == used;
#ifdef INGOT_HOPPER
    const bool meets = parts.clustered && used > 1;
    const Meeting meeting(memory + (Layout::kBytes + 15) / 16 * 16, rows);
    if (parts.clustered) {
      if (meets && appends && threadIdx.x == 0) meeting.open(splits - (end - begin));
      cluster_arrive();
    }
#endif
    const uint32_t pairs = min(a.group, kRows) * Dim / 2;  // of a split
    uint4* slots = parts.sums + size_t(item) * parts.splits * pairs;
    if (part < used) copy_split(begin);
    const std::byte* page = appends ? a.page(sequence, last) : a.state;
    T* stored = reinterpret_cast<T*>(const_cast<std::byte*>(page)) + (size_t(head) * kPage + last % kPage) * Dim;
    find_angles(a, int32_t(last), angles, threadIdx.x, kThreads);
    for (uint32_t i = threadIdx.x * 8; i < kRows * kWidth; i += kThreads * 8) *reinterpret_cast<uint4*>(query + i) = {};
    __syncthreads();
#ifdef INGOT_HOPPER
    if (parts.clustered) cluster_wait();
#endif
    wait_for_inputs();
    let_next_start();
    if (part >= used) return;
    take_heads(stored);
    __syncthreads();
    Sums sums, whole;
    whole.clear();
#pragma unroll 1
    for (uint32_t split = begin; split < end; ++split) {
      if (split == last / kSplit) place();
      attend(split, split + 1 < end, sums);
      if (used == 1) whole.merge(scores, sums);
#ifdef INGOT_HOPPER
      else if (meets) send_sums(meeting, used - 1, split - first, sums);
#endif
      else post_sums(slots + size_t(split - first) * pairs, sums);
    }
    if (used == 1) finish(whole);
#ifdef INGOT_HOPPER
    else if (meets) { if (appends) merge_sent(meeting, splits); }
#endif
    else if (appends) merge(slots, pairs, splits);
  }
};

// Every sequence has one token. Pages of earlier positions are read before the inputs are there.
template <class T, int Dim>
__global__ void __launch_bounds__(FewLayout<T, Dim>::kThreads) decode_few(const __grid_constant__ Attention a,
                                                                       const __grid_constant__ Parts parts) {
  extern __shared__ __align__(16) std::byte memory[];
  constexpr uint32_t rows = FewLayout<T, Dim>::kRows;
  const uint32_t tiles = (a.group + rows - 1) / rows, item = blockIdx.z * a.kv_heads + blockIdx.y;
  FewBlock<T, Dim>(a, blockIdx.y, blockIdx.z / tiles, blockIdx.z % tiles * rows, memory).run(parts, blockIdx.x, item);
}

}  // namespace ingot::cuda::paged

// Decoding of many sequences on Hopper: each warp attends by itself, to one head of keys of one sequence after another,
// for the up to 8 heads of queries that share it. The copy engine fills the warp's ring of pages, which runs on over
// its items: memory stays busy while heads are normed, turned and merged. Sums are those of attention_rows.h.
#pragma once
#include "attention_call.h"
#include "hopper.h"
#include "tensor_map.h"

namespace ingot::cuda::paged {

// In shared memory a page is one part a 64 elements, of 32 rows of 128 bytes, whose lines of 16 bytes the copy engine
// swaps so that a matrix of eight rows lies in all banks. Few warps have longer rings.
template <int Dim>
struct ManyLayout {
  static constexpr uint32_t kMostWarps = 8, kRows = 8, kWidth = Dim + 8;
  static constexpr uint32_t kParts = Dim / 64, kPartBytes = kPage * 128, kSlotBytes = kParts * kPartBytes;
  static constexpr uint32_t kBox = kPage;  // rows of a copy
  static constexpr uint32_t kOwnBytes = (kRows * kWidth + 2 * Dim) * 2 + Dim * 4 + Dim / 2 * 8;  // beside the ring
  static constexpr size_t kMostBytes = 227 * 1024;
  const uint32_t warps, slots;  // slots of a warp's ring

  __host__ __device__ explicit ManyLayout(uint32_t warps)
      : warps(warps),
        slots(min(64 * 1024 / kSlotBytes, (uint32_t(kMostBytes - 1024) / warps - kOwnBytes) / (kSlotBytes + 16))) {}
  __host__ __device__ uint32_t ring_bytes() const { return slots * kSlotBytes; }
  __host__ __device__ uint32_t own_bytes() const { return kOwnBytes + slots * 16; }  // 16: a barrier, and room
  size_t bytes() const { return 1024 + warps * (ring_bytes() + own_bytes()); }
};

#ifdef INGOT_HOPPER
template <class T, class Layout, int Dim>
struct ManyWarp {
  static constexpr uint32_t kPiecesOfTile = 2 * kTile / kPage, kRuns = Dim / 8;

  // What a warp works on: one head of keys of a sequence.
  struct Item {
    uint32_t index, sequence, head, from, last;  // the first position that the newest sees, and the newest

    __device__ Item(const Attention& a, uint32_t index, uint32_t last)
        : index(index), sequence(index / a.kv_heads), head(index % a.kv_heads), from(a.sees_from(last)), last(last) {}
    __device__ uint32_t first_tile() const { return from / kTile; }
    __device__ uint32_t end_tile() const { return last / kTile + 1; }
    __device__ uint32_t low() const { return from / kPage * kPage; }
  };

  const Attention& a;
  const CUtensorMap& map;
  const Scores scores;
  const Layout layout{blockDim.x / 32};
  const uint32_t items = a.sequences * a.kv_heads, workers = gridDim.x * layout.warps, lane = threadIdx.x % 32;
  uint32_t ring;  // the shared address of the slots
  Barrier* full;
  T *query, *fresh;  // fresh: the key and the value that the step brings
  float* buffer;
  float2* angles;
  Item item, ahead;  // attended to; copied
  uint32_t ahead_tile, ahead_piece = 0, block, next_last;  // next_last: the newest position of the item after `ahead`
  uint32_t copied = 0, taken = 0, parity = 0;              // slots
  uint32_t left[Dim / 16][4];
  float most, total[4], out[Dim / 8][4];  // of a split; rows 8 to 15 are nobody's
  float whole_most, whole_total, whole[Dim / 8][2];

  __device__ ManyWarp(const Attention& a, const CUtensorMap& map, std::byte* memory, uint32_t warp)
      : a(a), map(map), scores(a), item(a, warp * gridDim.x + blockIdx.x, 0), ahead(item) {
    const uint32_t room = (0u - shared_address(memory)) % 1024;
    ring = shared_address(memory) + room + warp * layout.ring_bytes();
    std::byte* own = memory + room + layout.warps * layout.ring_bytes() + warp * layout.own_bytes();
    full = reinterpret_cast<Barrier*>(own + Layout::kOwnBytes);
    angles = reinterpret_cast<float2*>(own);
    buffer = reinterpret_cast<float*>(angles + Dim / 2);
    query = reinterpret_cast<T*>(buffer + Dim);
    fresh = query + Layout::kRows * Layout::kWidth;
  }

  __device__ uint32_t newest(uint32_t index) const {
    return index < items ? uint32_t(a.positions[index / a.kv_heads]) : 0;
  }
  // Turns to an item: what is copied next is its first piece.
  __device__ void start_item(uint32_t index, uint32_t last) {
    ahead = Item(a, index, last);
    ahead_tile = ahead.first_tile();
    next_last = newest(index + workers);
  }
  __device__ uint32_t ahead_position() const { return ahead_tile * kTile + ahead_piece % (kTile / kPage) * kPage; }
  // Looks up early where the next piece lies.
  __device__ void find_block() {
    const uint32_t p = ahead_position();
    if (ahead.index < items && p >= ahead.low() && p < ahead.last)
      block = uint32_t(a.block_table[size_t(ahead.sequence) * a.blocks_per_sequence + p / kPage]);
  }

  // Starts copying the next piece, a page of keys or of values, into the slot that has been left longest; of a tile,
  // two of keys, then two of values. Rows that no one wrote stay out where they fill a box.
  __device__ void copy_next() {
    if (ahead.index >= items) return;
    const uint32_t row = lane / Layout::kParts * Layout::kBox, part = lane % Layout::kParts, p = ahead_position();
    const bool wanted = row < kPage && p >= ahead.low() && p + row < ahead.last;
    const uint32_t boxes = uint32_t(__popc(int(__ballot_sync(kAll, wanted))));
    Barrier& arrived = full[copied];
    if (lane == 0) expect(arrived, boxes * Layout::kBox * 128);
    __syncwarp();
    const uint32_t plane = ahead_piece / (kTile / kPage);
    if (wanted)
      copy_box(ring + copied * Layout::kSlotBytes + part * Layout::kPartBytes + row * 128, map, part * 64,
               (plane * a.kv_heads + ahead.head) * kPage + row, block, arrived);
    copied = copied + 1 == layout.slots ? 0 : copied + 1;
    if (++ahead_piece == kPiecesOfTile) {
      ahead_piece = 0;
      if (++ahead_tile == ahead.end_tile()) start_item(ahead.index + workers, next_last);
    }
    find_block();
  }

  // Waits for the next piece, of `plane` from position p on, and puts what the step brings into it, and zeros where
  // there is nothing. Returns its address.
  __device__ uint32_t take(uint32_t plane, uint32_t p) {
    wait(full[taken], parity);
    const uint32_t slot = ring + taken * Layout::kSlotBytes;
    if (p >= item.low() && p + kPage <= item.last) return slot;
    for (uint32_t i = lane; i < kPage * kRuns; i += 32) {
      const uint32_t row = i / kRuns, run = i % kRuns;
      if (p + row < item.last && p >= item.low()) continue;
      const uint4 x = p + row == item.last ? reinterpret_cast<const uint4*>(fresh + plane * Dim)[run] : uint4{};
      store_shared(slot + run / 8 * Layout::kPartBytes + row * 128 + (run % 8 ^ row % 8) * 16, x);
    }
    fence_shared();
    __syncwarp();
    return slot;
  }
  // The piece has been read.
  __device__ void leave() {
    if (++taken == layout.slots) {
      taken = 0;
      parity ^= 1;
    }
    __syncwarp();
    copy_next();
  }

  // Of the queries in order, then the key and the value that the step brings.
  __device__ const float* head_of(uint32_t task) const {
    if (task < a.group) return a.q + item.sequence * a.q_stride + (item.head * a.group + task) * Dim;
    return task == a.group ? a.k + item.sequence * a.k_stride + item.head * Dim
                           : a.v + item.sequence * a.v_stride + item.head * Dim;
  }
  // Norms, turns and rounds the queries, the new key and value, and stores these. Loads of several heads are under way at
  // once; then one after the other moves up to the first registers, so that the code is there once: it is fetched anew
  // every layer, while memory waits.
  __device__ void take_heads() {
    constexpr uint32_t kAtOnce = 6;
    const uint32_t tasks = a.group + 2;
    T* const page = reinterpret_cast<T*>(const_cast<std::byte*>(a.page(item.sequence, item.last)));
    for (uint32_t base = 0; base < tasks; base += kAtOnce) {
      Lanes<Dim / 32> heads[kAtOnce];
#pragma unroll
      for (uint32_t i = 0; i < kAtOnce; ++i)
        if (base + i < tasks) heads[i].read(a, head_of(base + i));
#pragma unroll 1
      for (uint32_t task = base; task < min(base + kAtOnce, tasks); ++task) {
        __syncwarp();
        heads[0].write(a, buffer);
#pragma unroll
        for (uint32_t i = 1; i < kAtOnce; ++i) heads[i - 1] = heads[i];
        if (task <= a.group) turn(a, buffer, task < a.group ? a.q_norm : a.k_norm, angles);
        __syncwarp();
        const uint32_t side = (task - a.group) * a.kv_heads + item.head;  // of what is stored
        T* const to = task < a.group ? query + task * Layout::kWidth : fresh + (task - a.group) * Dim;
        T* const state = task < a.group ? nullptr : page + (size_t(side) * kPage + item.last % kPage) * Dim;
        for (uint32_t d = lane; d < Dim; d += 32) {
          const T x = element<T>(buffer[d]);
          to[d] = x;
          if (state) state[d] = x;
        }
      }
    }
    __syncwarp();
    const T* row = query + lane / 4 * Layout::kWidth + lane % 4 * 2;
#pragma unroll
    for (int k = 0; k < Dim / 16; ++k) {
      left[k][0] = *reinterpret_cast<const uint32_t*>(row + k * 16);
      left[k][2] = *reinterpret_cast<const uint32_t*>(row + k * 16 + 8);
      left[k][1] = left[k][3] = 0;
    }
  }

  __device__ void clear() {
    most = -INFINITY;
#pragma unroll
    for (int j = 0; j < 4; ++j) total[j] = 0;
#pragma unroll
    for (int i = 0; i < Dim / 8; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) out[i][j] = 0;
  }

  // Adds tile t to the sums of its split.
  __device__ void attend(uint32_t t) {
    constexpr uint32_t kPages = kTile / kPage;
    float s[kTile / 8][4];
#pragma unroll
    for (int i = 0; i < int(kTile / 8); ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) s[i][j] = 0;
#pragma unroll
    for (uint32_t page = 0; page < kPages; ++page) {
      const uint32_t keys = take(0, t * kTile + page * kPage) + (lane % 8 + lane / 16 * 8) * 128;
      const uint32_t run = (lane / 8 % 2 ^ lane % 8) * 16;
#pragma unroll
      for (uint32_t k = 0; k < Dim / 16; ++k)
#pragma unroll
        for (uint32_t n = 0; n < 2; ++n) {
          uint32_t right[4];
          load_matrices(right, keys + k / 4 * Layout::kPartBytes + n * 16 * 128 + (run ^ k % 4 * 32));
          multiply_add<T>(s[page * 4 + 2 * n], left[k], right[0], right[1]);
          multiply_add<T>(s[page * 4 + 2 * n + 1], left[k], right[2], right[3]);
        }
      leave();
    }
    if (!scores.plain)
#pragma unroll
      for (int i = 0; i < int(kTile / 8); ++i)
#pragma unroll
        for (int j = 0; j < 2; ++j)
          s[i][j] = a.softcap > 0 ? softcap(s[i][j] * a.scale, a.softcap) : s[i][j] * a.scale;
    if (t * kTile + kTile - 1 > item.last || t * kTile < item.from)
#pragma unroll
      for (int i = 0; i < int(kTile / 8); ++i)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const uint32_t p = t * kTile + i * 8 + lane % 4 * 2 + j;
          if (p > item.last || p < item.from) s[i][j] = -INFINITY;
        }
    float next = s[0][0];
#pragma unroll
    for (int i = 0; i < int(kTile / 8); ++i) next = fmaxf(next, fmaxf(s[i][0], s[i][1]));
    next = fmaxf(next, __shfl_xor_sync(kAll, next, 1));
    next = fmaxf(most, fmaxf(next, __shfl_xor_sync(kAll, next, 2)));
    const float peak = scores.peak(next), scale = scores.rescale(most, peak);
    most = next;
    if (__any_sync(kAll, scale != 1)) {
      total[0] *= scale;
#pragma unroll
      for (int i = 0; i < Dim / 8; ++i)
#pragma unroll
        for (int j = 0; j < 2; ++j) out[i][j] *= scale;
    }
    const uint32_t one = packed<T>(1, 1);
#pragma unroll
    for (uint32_t page = 0; page < kPages; ++page) {
      const uint32_t values = take(1, t * kTile + page * kPage) + lane % 16 * 128;
      const uint32_t run = (lane / 16 ^ lane % 8) * 16;
#pragma unroll
      for (uint32_t k = 0; k < kPage / 16; ++k) {
        const auto &low = s[page * 4 + 2 * k], &high = s[page * 4 + 2 * k + 1];
        const uint32_t weights[4] = {packed<T>(scores.weight(low[0], peak), scores.weight(low[1], peak)), 0,
                                     packed<T>(scores.weight(high[0], peak), scores.weight(high[1], peak)), 0};
        multiply_add<T>(total, weights, one, one);
#pragma unroll
        for (uint32_t i = 0; i < Dim / 16; ++i) {
          uint32_t right[4];
          load_transposed(right, values + i / 4 * Layout::kPartBytes + k * 16 * 128 + (run ^ i % 4 * 32));
          multiply_add<T>(out[2 * i], weights, right[0], right[1]);
          multiply_add<T>(out[2 * i + 1], weights, right[2], right[3]);
        }
      }
      leave();
    }
  }

  // Adds the split's sums to those of earlier ones.
  __device__ void merge() {
    const float next = fmaxf(whole_most, most), peak = scores.peak(next);
    const float mine = scores.rescale(whole_most, peak), other = scores.rescale(most, peak);
    whole_most = next;
    whole_total = fmaf(total[0], other, whole_total * mine);
#pragma unroll
    for (int i = 0; i < Dim / 8; ++i)
#pragma unroll
      for (int j = 0; j < 2; ++j) whole[i][j] = fmaf(out[i][j], other, whole[i][j] * mine);
  }

  __device__ void finish() const {
    if (lane / 4 >= a.group) return;
    const uint32_t column = (item.head * a.group + lane / 4) * Dim + lane % 4 * 2;
    const float inverse = __frcp_rn(whole_total);
#pragma unroll
    for (int i = 0; i < Dim / 8; ++i)
      put_pair(a, item.sequence, column + i * 8, whole[i][0] * inverse, whole[i][1] * inverse);
  }

  __device__ void run() {
    if (lane == 0) prefetch(map);
    if (lane < layout.slots) init(full[lane], 1);
    fence_shared();
    for (uint32_t i = lane; i < Layout::kRows * Layout::kWidth; i += 32) query[i] = element<T>(0);
    __syncwarp();
    start_item(item.index, newest(item.index));
    find_block();
    for (uint32_t i = 0; i < layout.slots; ++i) copy_next();
    find_angles(a, int32_t(newest(item.index)), angles, lane, 32);
    wait_for_inputs();
    let_next_start();
    for (uint32_t index = item.index; index < items; index += workers) {
      item = Item(a, index, newest(index));
      if (index >= workers) find_angles(a, int32_t(item.last), angles, lane, 32);
      take_heads();
      whole_most = -INFINITY;
      whole_total = 0;
#pragma unroll
      for (int i = 0; i < Dim / 8; ++i) whole[i][0] = whole[i][1] = 0;
      clear();
      for (uint32_t t = item.first_tile(), end = item.end_tile(); t < end; ++t) {
        attend(t);
        if (t + 1 < end && (t + 1) % (kSplit / kTile)) continue;
        merge();
        clear();
      }
      finish();
    }
  }
};
#endif

template <class T, int Dim, class Layout = ManyLayout<Dim>>
__global__ void __launch_bounds__(32 * Layout::kMostWarps) decode_many(const __grid_constant__ Attention a,
                                                                  const __grid_constant__ CUtensorMap map) {
#ifdef INGOT_HOPPER
  extern __shared__ __align__(16) std::byte memory[];
  ManyWarp<T, Layout, Dim>(a, map, memory, threadIdx.x / 32).run();
#endif
}

// The state as the copy engine sees it: elements by rows of a unit by units, in boxes of 64 elements of some rows.
inline cudaError_t describe_pages(const Attention& a, uint32_t rows, CUtensorMap& map) {
  return map_tensor(map, Tensor<3>{CU_TENSOR_MAP_DATA_TYPE_UINT16, a.state,
                                   {a.dim, cuuint64_t(2) * a.kv_heads * kPage, cuuint64_t(1) << 31}, {a.dim * 2, a.unit},
                                   {kBoxBytes / 2, rows, 1}, CU_TENSOR_MAP_L2_PROMOTION_NONE});
}

}  // namespace ingot::cuda::paged

// Attention in plain f32: for a state of f32, and for tokens that attend to each other without one. A row is a warp's.
#pragma once
#include "attention_call.h"

namespace ingot::cuda::paged {

constexpr uint32_t kPlainRows = 8, kPlainMost = 16;  // rows a block; elements of a head a lane

inline size_t plain_bytes(const Attention& a) {
  return (kPlainRows * (a.dim + 2 * a.pairs) + 2 * kPage * (a.dim + 1)) * sizeof(float);
}

__device__ inline const float* plain_head(const Attention& a, uint32_t sequence, uint32_t p, uint32_t side) {
  if (!a.block_table) {
    const size_t token = size_t(a.sequence_start[sequence]) + p;
    return reinterpret_cast<const float*>(a.state) + (token * 2 * a.kv_heads + side) * a.dim;
  }
  return reinterpret_cast<const float*>(a.page(sequence, p)) + (size_t(side) * kPage + p % kPage) * a.dim;
}

__global__ void __launch_bounds__(32 * kPlainRows) attend_plain(const __grid_constant__ Attention a) {
  extern __shared__ __align__(16) std::byte memory[];
  wait_for_inputs();
  let_next_start();
  Rows rows;
  if (!find_rows(a, blockIdx.x, kPlainRows, rows)) return;
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, dim = a.dim, head = blockIdx.y;
  const uint32_t start = uint32_t(a.sequence_start[rows.sequence]);
  const auto token_of = [&](uint32_t r) { return start + (rows.first + r) / a.group; };
  const bool real = warp < rows.count;
  const uint32_t token = token_of(real ? warp : 0), own = a.position(rows.sequence, token);
  const uint32_t last = a.position(rows.sequence, token_of(rows.count - 1));
  const uint32_t length = uint32_t(a.sequence_start[rows.sequence + 1]) - start;
  const uint32_t from = a.sees_from(own), to = a.causal ? own + 1 : length;
  const uint32_t low = a.sees_from(a.position(rows.sequence, token_of(0))) / kPage * kPage;
  const uint32_t high = a.causal ? last + 1 : length;

  float2* angles = reinterpret_cast<float2*>(memory) + warp * a.pairs;
  float* query = reinterpret_cast<float*>(memory) + kPlainRows * 2 * a.pairs + warp * dim;
  float* keys = reinterpret_cast<float*>(memory) + kPlainRows * (2 * a.pairs + dim);
  float* values = keys + kPage * (dim + 1);
  const uint32_t query_head = head * a.group + (rows.first + (real ? warp : 0)) % a.group;
  Lanes<kPlainMost> lanes;
  lanes.read(a, a.q + token * a.q_stride + query_head * a.head_dim);
  lanes.write(a, query);
  find_angles(a, a.positions[token], angles, lane, 32);
  turn(a, query, a.q_norm, angles);
  const Scores scores(a);

  float most = -INFINITY, total = 0, out[kPlainMost] = {};
  for (uint32_t base = low; base < high; base += kPage) {
    __syncthreads();
    for (uint32_t r = warp; r < kPage; r += kPlainRows) {
      const bool present = base + r < high;
      const float* key = present ? plain_head(a, rows.sequence, base + r, head) : nullptr;
      const float* value = present ? plain_head(a, rows.sequence, base + r, a.kv_heads + head) : nullptr;
      for (uint32_t i = lane; i < dim; i += 32) {
        keys[r * (dim + 1) + i] = present ? key[i] : 0;
        values[r * (dim + 1) + i] = present ? value[i] : 0;
      }
    }
    __syncthreads();
    float dot = 0;
    for (uint32_t i = 0; i < dim; ++i) dot = fmaf(query[i], keys[lane * (dim + 1) + i], dot);
    const float s = base + lane >= from && base + lane < to ? scores(dot) : -INFINITY;
    const float next = fmaxf(most, warp_max(s)), peak = scores.peak(next);
    const float scale = scores.rescale(most, peak), w = scores.weight(s, peak);
    most = next;
    total = fmaf(total, scale, warp_sum(w));
#pragma unroll
    for (uint32_t i = 0; i < kPlainMost; ++i) out[i] *= scale;
    for (uint32_t r = 0; r < kPage; ++r) {
      const float weight = __shfl_sync(kAll, w, int(r));
#pragma unroll
      for (uint32_t i = 0; i < kPlainMost; ++i)
        if (lane + i * 32 < dim) out[i] = fmaf(weight, values[r * (dim + 1) + lane + i * 32], out[i]);
    }
  }
  if (!real) return;
#pragma unroll
  for (uint32_t i = 0; i < kPlainMost; ++i) {
    const uint32_t d = lane + i * 32;
    if (d < a.head_dim) put_out(a, token, query_head * a.head_dim + d, out[i] / total);
  }
}

}  // namespace ingot::cuda::paged

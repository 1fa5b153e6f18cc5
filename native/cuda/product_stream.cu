// Products of few tokens: every weight is read once, straight from memory into the registers of the warp that
// multiplies it. A block takes tiles of 16 weight rows; each of its warps sums one run of K of all of them, and the runs
// meet in shared memory.
#include <algorithm>

#include "product_rows.h"

namespace ingot::cuda {
namespace {

constexpr uint32_t kThreads = kRuns * 32;  // a run is a warp's
constexpr uint32_t kPartialStride = 20;  // floats from a token's 16 sums to the next: no bank is stored to twice

size_t partial_bytes(const Product& p, uint32_t columns) {
  return size_t{2} * p.branches * kRuns * columns * kPartialStride * sizeof(float);
}
size_t staged_bytes(const Product& p, uint32_t tokens) {
  return tokens * (staged_stride(p.k) * size_t{2} + 4 + 4 * kRuns);
}

// The sums of runs, `stride` apart, of each group in order, then of the groups.
__device__ inline float sum_of_runs(const float* runs, uint32_t stride, uint32_t count, uint32_t together) {
  float of[kRuns], all = 0, sum = 0;
  uint32_t left = together;
#pragma unroll
  for (uint32_t run = 0; run < kRuns; ++run) of[run] = run < count ? runs[run * stride] : 0;
#pragma unroll
  for (uint32_t run = 0; run < kRuns; ++run) {
    if (run < count) sum += of[run];
    if (--left && run + 1 < kRuns) continue;
    all += sum;
    sum = 0;
    left = together;
  }
  return all;
}

template <class W, uint32_t kColumns>  // tokens at once, in eights
__global__ __launch_bounds__(kThreads, kColumns == 1 ? 2 : 1) void stream(const Product p, uint32_t tokens_per_pass) {
  extern __shared__ __align__(16) std::byte shared[];
  const uint32_t first_token = blockIdx.y * tokens_per_pass;
  const uint32_t tokens = min(tokens_per_pass, p.tokens() - first_token);
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  float* partials = reinterpret_cast<float*>(shared);
  const uint32_t tile_floats = kRuns * kColumns * 8 * kPartialStride;
  uint16_t* staged = reinterpret_cast<uint16_t*>(partials + 2 * p.branches * tile_floats);
  float* factors = reinterpret_cast<float*>(staged + size_t{tokens} * staged_stride(p.k));
  float* squares = factors + tokens;

  const uint32_t tiles = p.tiles(), per = run_blocks(p), warps = ceil_div(p.blocks(), per);
  const uint32_t together = group_runs(p);
  const uint32_t first = min(warp * per, p.blocks()), last = min(first + per, p.blocks());
  const bool works = first < last;
  Held<W> held;
  Cursor next{blockIdx.x * p.branches, first};
  let_next_start();
  if (works) {
    for (uint32_t slot = 0; slot < Held<W>::kSlots; ++slot) held.load(p, next, slot);
    held.load_scales(p, next);
    next.advance(first, last, p.branches);
  }
  if (copies<W>(p)) copy_rows<W>(p, first_token, tokens, staged, kThreads);
  else if (tokens == 1) stage<W, 1, kRuns>(p, first_token, tokens, staged, squares);
  else stage<W, 4, kRuns>(p, first_token, tokens, staged, squares);
  __syncthreads();
  // Read after the next barrier only.
  for (uint32_t token = threadIdx.x; token < tokens; token += kThreads)
    factors[token] = sum_factor<W>(p, squares + token * kRuns, kRuns);

  uint32_t parity = 0;
  for (uint32_t item = blockIdx.x; item * p.branches < tiles; item += gridDim.x, parity ^= 1) {
    // The threads that finish are others each time, so that no warp's stream waits for all.
    const uint32_t thread = (threadIdx.x + item / gridDim.x * 32) % kThreads;
    const auto residual_at = [&](uint32_t i) {
      const uint32_t column = item * kTile + i % kTile;
      const bool exists = p.residual.data && i < kTile * tokens && column < p.n;
      return exists ? row_of<const float>(p.residual, first_token + i / kTile)[column] : 0.0f;
    };
    const float residual = residual_at(thread);
    float* meeting = partials + parity * p.branches * tile_floats;
    for (uint32_t branch = 0; branch < p.branches && works; ++branch) {
      float sum[kColumns][4] = {};
      for (uint32_t block = first; block < last; ++block) {
        float block_sum[kColumns][4] = {};
        const float scale_low = W::kQuantised ? __half2float(held.scale_low) : 1;
        const float scale_high = W::kQuantised ? __half2float(held.scale_high) : 1;
        held.load_scales(p, next);
#pragma unroll
        for (uint32_t slot = 0; slot < Held<W>::kSlots; ++slot) {
          const uint4 low = held.low[slot], high = held.high[slot];
          const __nv_bfloat162 sub_low = __float2bfloat162_rn(W::kInterleaved ? float(held.sub_low[slot]) : 0);
          const __nv_bfloat162 sub_high = __float2bfloat162_rn(W::kInterleaved ? float(held.sub_high[slot]) : 0);
          const uint16_t* x = staged + block * kQuantBlock + (slot * 4 + t) * W::kElements;
#pragma unroll
          for (uint32_t i = 0; i < W::kElements / 8; ++i) {
            const uint4 a = W::eight(low, i, sub_low), c = W::eight(high, i, sub_high);
#pragma unroll
            for (uint32_t column = 0; column < kColumns; ++column) {
              const uint32_t token = column * 8 + g;
              uint4 b{};
              if (token < tokens) b = *reinterpret_cast<const uint4*>(x + size_t{token} * staged_stride(p.k) + i * 8);
              float(&d)[4] = W::kQuantised ? block_sum[column] : sum[column];
              mma<W::kHalf>(d, a.x, c.x, a.y, c.y, b.x, b.y);
              mma<W::kHalf>(d, a.z, c.z, a.w, c.w, b.z, b.w);
            }
          }
          held.load(p, next, slot);
        }
        next.advance(first, last, p.branches);
        if constexpr (W::kQuantised)
          for (uint32_t column = 0; column < kColumns; ++column)
            for (uint32_t i = 0; i < 4; ++i)
              sum[column][i] = fmaf(block_sum[column][i], i < 2 ? scale_low : scale_high, sum[column][i]);
      }
      float* mine = meeting + branch * tile_floats + warp * (kColumns * 8 * kPartialStride);
      for (uint32_t column = 0; column < kColumns; ++column)
        for (uint32_t i = 0; i < 4; ++i)
          mine[(column * 8 + 2 * t + i % 2) * kPartialStride + g + i / 2 * 8] = sum[column][i];
    }
    __syncthreads();
    for (uint32_t i = thread; i < kTile * tokens; i += kThreads) {
      const uint32_t token = i / kTile, row = i % kTile, column = item * kTile + row;
      if (column >= p.n) continue;
      float sums[2] = {};
      for (uint32_t branch = 0; branch < p.branches; ++branch)
        sums[branch] = sum_of_runs(meeting + branch * tile_floats + token * kPartialStride + row,
                                   kColumns * 8 * kPartialStride, warps, together);
      const float factor = p.norm ? factors[token] : 1;
      finish(p, first_token + token, column, sums[0] * factor, sums[1] * factor,
             i < kThreads ? residual : residual_at(i));
    }
  }
}

template <class W, uint32_t kColumns>
cudaError_t launch_stream(const Context& context, const Product& p, uint32_t tokens_per_pass) {
  const size_t shared = partial_bytes(p, kColumns * 8) + staged_bytes(p, tokens_per_pass);
  const auto kernel = stream<W, kColumns>;
  if (const cudaError_t error = allow_shared(kernel, shared)) return error;
  const uint32_t items = ceil_div(p.tiles(), p.branches);
  const uint32_t most = context.device.processors * (shared * 2 <= context.device.shared_bytes ? 2 : 1);
  // A last round of few blocks leaves memory idle: then fewer of them take as many tiles each. Blocks of int4 keep too few
  // bytes under way for that.
  const bool even = W::kElements <= 16 && items % most * 2 < most;
  const uint32_t together = even ? ceil_div(items, ceil_div(items, most)) : std::min(items, most);
  const dim3 blocks(together, ceil_div(p.tokens(), tokens_per_pass));
  const Grid grid{blocks, kThreads, shared, 1, kSharedPercent};
  return launch(context, kernel, grid, p, tokens_per_pass);
}

template <class W>
cudaError_t stream_of(const Context& context, const Product& p) {
  const uint32_t tokens = ceil_div(p.tokens(), stream_passes(context.device, p));
  if (tokens <= 8) return launch_stream<W, 1>(context, p, tokens);
  if (tokens <= 16) return launch_stream<W, 2>(context, p, tokens);
  return launch_stream<W, 4>(context, p, tokens);
}

}  // namespace

size_t stream_shared(const Product& p) { return partial_bytes(p, 8) + staged_bytes(p, 1); }

uint32_t stream_passes(const Device& device, const Product& p) {
  uint32_t tokens = p.tokens() < kStreamTokens ? p.tokens() : kStreamTokens;
  while (tokens > 1 && partial_bytes(p, round_up(tokens, 8)) + staged_bytes(p, tokens) > device.shared_bytes) --tokens;
  return ceil_div(p.tokens(), tokens);
}

cudaError_t product_stream(const Context& context, const Product& p) {
  switch (p.dtype) {
    case DType::bf16: return stream_of<Bf16Weights>(context, p);
    case DType::f16: return stream_of<F16Weights>(context, p);
    case DType::i8: return stream_of<Int8Weights>(context, p);
    case DType::i4: return stream_of<Int4Weights>(context, p);
    case DType::e4m3: return stream_of<E4m3Weights>(context, p);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace ingot::cuda

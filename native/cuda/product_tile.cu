// Products of 9 to a few hundred tokens on Hopper: a block holds 128 weight rows, in the registers of its eight warps as
// the stream kernel does, and multiplies them with up to 128 tokens at once, whose operands it copies from the workspace.
// Where rows are few, the blocks of a cluster each sum a group of runs of K. The blocks make the operands together
// first, row by row: one launch does all.
#include <algorithm>

#include "hopper.h"
#include "product_rows.h"

namespace ingot::cuda {
namespace {

constexpr uint32_t kThreads = 256, kRows = 128, kChunk = 128, kSumStride = kRows + 4;

// Tokens of x whose operands are made, and those whose operands are there; blocks that have seen it.
struct Counters { uint32_t taken, made, seen; };

struct Work {
  Counters* counters;
  float* factors;  // (tokens) inverse root mean squares
  uint16_t* operands;  // (tiles of tokens, chunks of k, 8 k at once, tokens, 8)
};

size_t factor_bytes(const Product& p) { return (size_t{p.tokens()} * 4 + 255) / 256 * 256; }
uint32_t padded_k(const Product& p) { return round_up(p.k, kQuantBlock); }
uint32_t tokens_at_once(const Product& p) {
  const uint32_t most = p.scales ? 64 : 128;  // quantised weights take registers for the sums of blocks
  uint32_t tokens = 16;
  while (tokens < most && tokens < p.tokens()) tokens *= 2;
  return tokens;
}
size_t operand_bytes(const Product& p) {
  const uint32_t at_once = tokens_at_once(p);
  return size_t{round_up(p.tokens(), at_once)} * padded_k(p) * 2;
}
__host__ __device__ constexpr uint32_t stages_of(uint32_t tokens) { return tokens == 128 ? 4 : tokens == 64 ? 6 : 8; }
constexpr size_t ring_bytes(uint32_t tokens) { return size_t{stages_of(tokens)} * tokens * kChunk * 2; }

#ifdef INGOT_HOPPER
// The operand of instruction i of a span of 4 kElements, index 8 h .. 8 h + 7, in a staged row.
template <class W>
__device__ uint4 gather(const uint16_t* span, uint32_t i, uint32_t h) {
  uint32_t pairs[4];
#pragma unroll
  for (uint32_t t = 0; t < 4; ++t) pairs[t] = *reinterpret_cast<const uint32_t*>(span + t * W::kElements + 4 * i + 2 * h);
  return {pairs[0], pairs[1], pairs[2], pairs[3]};
}

// Makes operands of rows of x until none is left, and waits for those of other blocks. A block that waits does so for
// rows that running blocks have taken, so none needs all to run at once.
template <class W, uint32_t kTokens>
__device__ void make_operands(const Product& p, const Work& work, std::byte* shared) {
  constexpr uint32_t kSpan = 4 * W::kElements;
  __shared__ uint32_t taken;
  __shared__ float squares[kThreads / 32];
  uint16_t* row = reinterpret_cast<uint16_t*>(shared);
  const uint32_t k = round_up(p.k, kQuantBlock);
  wait_for_inputs();
  for (;;) {
    if (threadIdx.x == 0) taken = atomicAdd(&work.counters->taken, 1);
    __syncthreads();
    const uint32_t token = taken;
    if (token >= p.tokens()) break;
    if (copies<W>(p)) copy_rows(p, token, 1, row, kThreads);
    else stage<W, 1, kThreads / 32>(p, token, 1, row, squares);
    __syncthreads();
    if (threadIdx.x == 0) work.factors[token] = inverse_rms(p, squares, kThreads / 32);
    uint16_t* tile = work.operands + size_t{token / kTokens * kTokens} * k + token % kTokens * 8;
    for (uint32_t eight = threadIdx.x; eight < k / 8; eight += kThreads) {
      const uint32_t span = eight * 8 / kSpan, within = eight % (kSpan / 8);
      *reinterpret_cast<uint4*>(tile + size_t{eight} * kTokens * 8) = gather<W>(row + span * kSpan, within / 2, within % 2);
    }
    fence_async();
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(&work.counters->made, 1);
  }
  if (threadIdx.x == 0) {
    uint32_t made;
    do asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(made) : "l"(&work.counters->made) : "memory");
    while (made < p.tokens());
    fence_async();
    if (atomicAdd(&work.counters->seen, 1) == gridDim.x * gridDim.y - 1) {
      work.counters->taken = work.counters->made = 0;
      __threadfence();
      work.counters->seen = 0;
    }
  }
  __syncthreads();
}

template <uint32_t kCount>
__device__ void add(float (&to)[kCount], const float (&from)[kCount]) {
#pragma unroll
  for (uint32_t i = 0; i < kCount; ++i) to[i] += from[i];
}

// Sums blocks first .. last of the rows that `held` streams, into totals as mma.h has them of each eight tokens.
template <class W, uint32_t kTokens>
__device__ void sum_blocks(const Product& p, const uint16_t* operands, uint16_t* ring, Held<W>& held, Cursor next, uint32_t first,
                           uint32_t last, float (&total)[kTokens / 2]) {
  constexpr uint32_t kStages = stages_of(kTokens), kChunkBytes = kTokens * kChunk * 2, kHalf = Held<W>::kSlots / 2;
  __shared__ Barrier full[kStages], empty[kStages];
  const uint32_t chunks = (last - first) * 2, per = segment_blocks(p);
  const std::byte* source = reinterpret_cast<const std::byte*>(operands) + size_t{first} * 2 * kChunkBytes;
  std::byte* to = reinterpret_cast<std::byte*>(ring);
  if (threadIdx.x == 0)
    for (uint32_t i = 0; i < kStages; ++i) init(full[i], 1), init(empty[i], kThreads / 32);
  fence_async();
  __syncthreads();
  const auto fetch = [&](uint32_t chunk) {
    copy(to + chunk % kStages * kChunkBytes, source + size_t{chunk} * kChunkBytes, kChunkBytes, full[chunk % kStages]);
  };
  if (threadIdx.x == 0)
    for (uint32_t i = 0; i < min(chunks, kStages - 1); ++i) fetch(i);

  float sum[kTokens / 2], run[W::kQuantised ? kTokens / 2 : 1];
  for (uint32_t block = first; block < last; ++block) {
    const float scale_low = W::kQuantised ? __half2float(held.scale_low) : 1, scale_high = W::kQuantised ? __half2float(held.scale_high) : 1;
    held.load_scales(p, next);
    const bool starts = block % per == 0, ends = block % per == per - 1 || block == last - 1;
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
      const uint32_t chunk = (block - first) * 2 + half, stage = chunk % kStages;
      // One stage behind, so that no warp waits for the one that fetches.
      const uint32_t ahead = chunk + kStages - 1;
      if (threadIdx.x == 0 && ahead < chunks) {
        if (chunk > 0) wait(empty[(chunk - 1) % kStages], (chunk - 1) / kStages % 2);
        fetch(ahead);
      }
      __syncwarp();
      wait(full[stage], chunk / kStages % 2);
      const uint32_t base = shared_address(to + stage * kChunkBytes);
      wgmma_begin();
#pragma unroll
      for (uint32_t slot = 0; slot < kHalf; ++slot) {
        const uint32_t s = half * kHalf + slot;
        const __nv_bfloat162 sub_low = __float2bfloat162_rn(W::kInterleaved ? float(held.sub_low[s]) : 0);
        const __nv_bfloat162 sub_high = __float2bfloat162_rn(W::kInterleaved ? float(held.sub_high[s]) : 0);
#pragma unroll
        for (uint32_t i = 0; i < W::kElements / 8; ++i) {
          const uint4 a = W::eight(held.low[s], i, sub_low), c = W::eight(held.high[s], i, sub_high);
          const uint32_t at = base + (slot * (W::kElements / 4) + i * 2) * (kTokens * 32);
          const bool fresh = half == 0 && slot == 0 && i == 0 && (W::kQuantised || starts);
          wgmma<W::kHalf>(sum, {a.x, c.x, a.y, c.y}, operand(at, kTokens * 16), !fresh);
          wgmma<W::kHalf>(sum, {a.z, c.z, a.w, c.w}, operand(at + kTokens * 32, kTokens * 16), 1);
        }
      }
      wgmma_end();
      if (threadIdx.x % 32 == 0) arrive(empty[stage]);
#pragma unroll
      for (uint32_t slot = 0; slot < kHalf; ++slot) held.load(p, next, half * kHalf + slot);
    }
    ++next.block;
    if constexpr (W::kQuantised) {
#pragma unroll
      for (uint32_t i = 0; i < kTokens / 2; ++i) run[i] = fmaf(sum[i], i % 4 < 2 ? scale_low : scale_high, starts ? 0.0f : run[i]);
      if (ends) add(total, run);
    } else if (ends) {
      add(total, sum);
    }
  }
}
#endif

template <class W, uint32_t kTokens>
__global__ __launch_bounds__(kThreads, 1) void tile(const Product p, const Work work) {
#ifdef INGOT_HOPPER
  extern __shared__ __align__(128) std::byte shared[];
  const uint32_t groups = groups_of(p), group = blockIdx.x % groups, tile = blockIdx.x / groups, warp = threadIdx.x / 32;
  const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const uint32_t blocks = segment_blocks(p) * (segments_of(p) / groups);
  const uint32_t first = min(group * blocks, p.blocks()), last = min(first + blocks, p.blocks());
  let_next_start();
  Held<W> held;
  Cursor next{tile * (kRows / kTile) + warp, first};
  if (first < last) {
#pragma unroll
    for (uint32_t slot = 0; slot < Held<W>::kSlots; ++slot) held.load(p, next, slot);
    held.load_scales(p, next);
  }
  ++next.block;
  make_operands<W, kTokens>(p, work, shared);
  const uint32_t first_token = blockIdx.y * kTokens, tokens = min(kTokens, p.tokens() - first_token);
  float total[kTokens / 2] = {};
  if (first < last)
    sum_blocks<W, kTokens>(p, work.operands + size_t{first_token} * round_up(p.k, kQuantBlock), reinterpret_cast<uint16_t*>(shared), held,
                           next, first, last, total);
  __syncthreads();
  float* sums = reinterpret_cast<float*>(shared);
#pragma unroll
  for (uint32_t i = 0; i < kTokens / 2; ++i)
    sums[(i / 4 * 8 + 2 * t + i % 2) * kSumStride + warp * kTile + g + i % 4 / 2 * 8] = total[i];
  if (groups > 1) cluster_arrive_and_wait();
  else __syncthreads();
  const uint32_t columns = kRows / p.branches;
  for (uint32_t i = group * kThreads + threadIdx.x; i < tokens * columns; i += groups * kThreads) {
    const uint32_t token = i / columns, c = i % columns, column = tile * columns + c;
    if (column >= p.n) continue;
    const float residual = residual_of(p, first_token + token, column);
    const float* mine = sums + token * kSumStride + (p.branches == 2 ? c + c / kTile * kTile : c);
    float sum = 0, other = 0;
    for (uint32_t from = 0; from < groups; ++from) {
      sum += groups > 1 ? load_of(mine, from) : mine[0];
      if (p.branches == 2) other += groups > 1 ? load_of(mine + kTile, from) : mine[kTile];
    }
    const float factor = p.norm ? __ldcg(work.factors + first_token + token) : 1;
    finish(p, first_token + token, column, sum * factor, other * factor, residual);
  }
  if (groups > 1) cluster_arrive_and_wait();  // others read this block's memory
#endif
}

template <class W, uint32_t kTokens>
cudaError_t launch_tile(const Context& context, const Product& p) {
  const auto kernel = tile<W, kTokens>;
  std::byte* at = context.workspace.data;
  const Work work{reinterpret_cast<Counters*>(at), reinterpret_cast<float*>(at + kCounterBytes),
                  reinterpret_cast<uint16_t*>(at + kCounterBytes + factor_bytes(p))};
  const size_t row = (size_t{padded_k(p)} + 32) * 2, sums = size_t{kTokens} * kSumStride * 4;
  const size_t shared = std::max({ring_bytes(kTokens), row, sums});
  const uint32_t groups = groups_of(p);
  if (const cudaError_t error = allow_shared(kernel, shared)) return error;
  return launch(context, kernel,
                {{ceil_div(p.tiles(), kRows / kTile) * groups, ceil_div(p.tokens(), kTokens)}, kThreads, shared, groups},
                p, work);
}

template <class W>
cudaError_t tile_of(const Context& context, const Product& p) {
  switch (tokens_at_once(p)) {
    case 16: return launch_tile<W, 16>(context, p);
    case 32: return launch_tile<W, 32>(context, p);
    case 64: return launch_tile<W, 64>(context, p);
  }
  if constexpr (W::kQuantised) return cudaErrorInvalidValue;
  else return launch_tile<W, 128>(context, p);
}

}  // namespace

bool tile_can(const Device& device, const Product& p) {
  return p.dtype != DType::f32 && device.major == 9 && (size_t{padded_k(p)} + 32) * 2 + 1024 <= device.shared_bytes;
}

// Of any number of tokens up to p's.
size_t tile_workspace(const Product& p) { return kCounterBytes + factor_bytes(p) + operand_bytes(p); }

cudaError_t product_tile(const Context& context, const Product& p) {
  switch (p.dtype) {
    case DType::bf16: return tile_of<Bf16Weights>(context, p);
    case DType::f16: return tile_of<F16Weights>(context, p);
    case DType::i8: return tile_of<Int8Weights>(context, p);
    case DType::i4: return tile_of<Int4Weights>(context, p);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace ingot::cuda

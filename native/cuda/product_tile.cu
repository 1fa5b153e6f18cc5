// Products of more than a few tokens on Hopper, in the bits of the stream kernel: a block multiplies 128 weight rows, 16
// in the registers of each warp, with up to 128 tokens at once, whose operands it copies from the workspace. Where rows are
// few, the blocks of a cluster each sum a group of runs of K. The blocks make the operands together first, row by row: one
// launch does all.
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
// Chunks of K in shared memory: of operands, and of weights, 16 bytes of each thread's rows by slot.
template <class W>
__host__ __device__ constexpr uint32_t slots_of() { return kChunk / (4 * W::kElements); }
template <class W>
__host__ __device__ constexpr uint32_t weight_bytes() { return slots_of<W>() * 2 * 16 * kThreads; }
__host__ __device__ constexpr uint32_t chunk_bytes(uint32_t tokens) { return tokens * kChunk * 2; }
template <class W>
__host__ __device__ constexpr uint32_t stages_of(uint32_t tokens) {
  const uint32_t fit = 196608 / (weight_bytes<W>() + chunk_bytes(tokens));
  return fit < 6 ? fit : 6;
}

// Bytes of shared memory: weights, then what is there in turns, a row of x, operands and finished sums.
template <class W>
size_t shared_of(const Product& p, uint32_t tokens) {
  const size_t row = (size_t{padded_k(p)} + 32) * 2, sums = size_t{tokens} * kSumStride * 4;
  const size_t stages = stages_of<W>(tokens);
  return stages * weight_bytes<W>() + std::max({stages * chunk_bytes(tokens), row, sums});
}

#ifdef INGOT_HOPPER
// The operand of instruction i of a span of 4 kElements, index 8 h .. 8 h + 7, in a staged row.
template <class W>
__device__ uint4 gather(const uint16_t* span, uint32_t i, uint32_t h) {
  uint32_t pairs[4];
#pragma unroll
  for (uint32_t t = 0; t < 4; ++t)
    pairs[t] = *reinterpret_cast<const uint32_t*>(span + t * W::kElements + 4 * i + 2 * h);
  return {pairs[0], pairs[1], pairs[2], pairs[3]};
}

// Makes operands of rows of x until none is left, and waits for those of other blocks. A block that waits does so for
// rows that running blocks have taken, so none needs all to run at once.
template <class W, uint32_t kTokens>
__device__ void make_operands(const Product& p, const Work& work, std::byte* shared) {
  constexpr uint32_t kSpan = 4 * W::kElements;
  __shared__ uint32_t taken[2];
  __shared__ float squares[kThreads / 32];
  uint16_t* row = reinterpret_cast<uint16_t*>(shared);
  const uint32_t k = round_up(p.k, kQuantBlock);
  wait_for_inputs();
  if (threadIdx.x == 0) taken[0] = atomicAdd(&work.counters->taken, 1);
  for (uint32_t turn = 0;; turn ^= 1) {
    __syncthreads();
    const uint32_t token = taken[turn];
    if (token >= p.tokens()) break;
    if (threadIdx.x == 0) taken[turn ^ 1] = atomicAdd(&work.counters->taken, 1);
    if (copies<W>(p)) copy_rows<W>(p, token, 1, row, kThreads);
    else stage<W, 1, kThreads / 32>(p, token, 1, row, squares);
    __syncthreads();
    if (threadIdx.x == 0) work.factors[token] = sum_factor<W>(p, squares, kThreads / 32);
    uint16_t* tile = work.operands + size_t{token / kTokens * kTokens} * k + token % kTokens * 8;
    for (uint32_t eight = threadIdx.x; eight < k / 8; eight += kThreads) {
      const uint32_t span = eight * 8 / kSpan, within = eight % (kSpan / 8);
      const uint4 operands = gather<W>(row + span * kSpan, within / 2, within % 2);
      *reinterpret_cast<uint4*>(tile + size_t{eight} * kTokens * 8) = operands;
    }
    fence_async();
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      atomicAdd(&work.counters->made, 1);
    }
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

// A thread's 16 bytes of weights of each slot: rows g and g + 8 of its warp's tile, from block `first` of K.
template <class W, uint32_t kTokens>
struct Weights {
  const std::byte* low;
  uint32_t row_bytes, start;  // bytes of a row; where this thread's first slot is
  bool exists;
  std::byte* ring;

  __device__ Weights(const Product& p, uint32_t tile, uint32_t first, std::byte* ring)
      : row_bytes(uint32_t(Held<W>::row_bytes(p))), start(first * 2 * slots_of<W>() * 64 + threadIdx.x % 4 * 16),
        exists(tile < p.tiles()), ring(ring + threadIdx.x * 16) {
    low = p.weight + (size_t{exists ? tile : 0} * kTile + threadIdx.x % 32 / 4) * row_bytes;
  }
  __device__ std::byte* place(uint32_t chunk, uint32_t slot, uint32_t high) const {
    return ring + ((chunk % stages_of<W>(kTokens) * slots_of<W>() + slot) * 2 + high) * (kThreads * 16);
  }
  // Past the end of the row, zeros; past that of the blocks that are summed, nothing: a group of copies in any case.
  __device__ void fetch(uint32_t chunk, uint32_t chunks) const {
    if (chunk < chunks)
#pragma unroll
      for (uint32_t slot = 0; slot < slots_of<W>(); ++slot) {
        const uint32_t at = start + (chunk * slots_of<W>() + slot) * 64;
        const bool valid = exists && at < row_bytes;
        const std::byte* from = low + (valid ? at : 0);
#pragma unroll
        for (uint32_t high = 0; high < 2; ++high)
          asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(
                           shared_address(place(chunk, slot, high))),
                       "l"(from + size_t{high} * 8 * row_bytes), "r"(valid ? 16 : 0)
                       : "memory");
      }
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
};

// The factors of quantised weights of rows g and g + 8.
template <class W>
struct Factors {
  __half scale[2];
  int8_t sub[2];

  __device__ void load_scales(const Product& p, uint32_t tile, uint32_t block) {
    if constexpr (W::kQuantised) {
      if (tile >= p.tiles() || block >= p.blocks()) return;
      const __half* from = p.scales + (size_t{tile} * kTile + threadIdx.x % 32 / 4) * p.blocks() + block;
      scale[0] = __ldg(from), scale[1] = __ldg(from + size_t{8} * p.blocks());
    }
  }
  __device__ void load_subs(const Product& p, uint32_t tile, uint32_t chunk) {
    if constexpr (W::kInterleaved) {
      const uint32_t groups = ceil_div(p.k, kQuantGroup), group = chunk * (kChunk / kQuantGroup) + threadIdx.x % 4;
      const int8_t* from = p.sub_scales + (size_t{tile} * kTile + threadIdx.x % 32 / 4) * groups + group;
      const bool exists = tile < p.tiles() && group < groups;
      sub[0] = exists ? __ldg(from) : 0, sub[1] = exists ? __ldg(from + size_t{8} * groups) : 0;
    }
  }
};

// Sums blocks first .. last of a warp's tile into totals, as mma.h has them of each eight tokens.
template <class W, uint32_t kTokens>
__device__ void sum_blocks(const Product& p, const Weights<W, kTokens>& weights, uint32_t tile,
                           const uint16_t* operands, std::byte* ring, uint32_t first, uint32_t last,
                           float (&total)[kTokens / 2]) {
  constexpr uint32_t kStages = stages_of<W>(kTokens), kBytes = chunk_bytes(kTokens), kSlots = slots_of<W>();
  __shared__ Barrier full[kStages], empty[kStages];
  const uint32_t chunks = (last - first) * 2, per = run_blocks(p);
  const std::byte* source = reinterpret_cast<const std::byte*>(operands) + size_t{first} * 2 * kBytes;
  if (threadIdx.x == 0)
    for (uint32_t i = 0; i < kStages; ++i) init(full[i], 1), init(empty[i], kThreads / 32);
  fence_async();
  __syncthreads();
  const auto fetch = [&](uint32_t chunk) {
    copy(ring + chunk % kStages * kBytes, source + size_t{chunk} * kBytes, kBytes, full[chunk % kStages]);
  };
  if (threadIdx.x == 0)
    for (uint32_t i = 0; i < min(chunks, kStages - 1); ++i) fetch(i);

  float sum[kTokens / 2], run[W::kQuantised ? kTokens / 2 : 1];
  Factors<W> factors, next;
  next.load_scales(p, tile, first);
  next.load_subs(p, tile, first * 2);
  for (uint32_t chunk = 0; chunk < chunks; ++chunk) {
    const uint32_t stage = chunk % kStages, block = first + chunk / 2, ahead = chunk + kStages - 1;
    const bool starts = block % per == 0, ends = block % per == per - 1 || block == last - 1;
    if (threadIdx.x == 0 && ahead < chunks) {
      if (chunk > 0) wait(empty[(chunk - 1) % kStages], (chunk - 1) / kStages % 2);
      fetch(ahead);
    }
    weights.fetch(ahead, chunks);
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 1) : "memory");
    uint4 low[kSlots], high[kSlots];
#pragma unroll
    for (uint32_t slot = 0; slot < kSlots; ++slot) {
      low[slot] = *reinterpret_cast<const uint4*>(weights.place(chunk, slot, 0));
      high[slot] = *reinterpret_cast<const uint4*>(weights.place(chunk, slot, 1));
    }
    factors.sub[0] = next.sub[0], factors.sub[1] = next.sub[1];
    if (chunk % 2 == 0) factors.scale[0] = next.scale[0], factors.scale[1] = next.scale[1];
    const __nv_bfloat162 sub_low = __float2bfloat162_rn(W::kInterleaved ? float(factors.sub[0]) : 0);
    const __nv_bfloat162 sub_high = __float2bfloat162_rn(W::kInterleaved ? float(factors.sub[1]) : 0);
    __syncwarp();
    wait(full[stage], chunk / kStages % 2);
    const uint32_t base = shared_address(ring + stage * kBytes);
    wgmma_begin();
#pragma unroll
    for (uint32_t slot = 0; slot < kSlots; ++slot)
#pragma unroll
      for (uint32_t i = 0; i < W::kElements / 8; ++i) {
        const uint4 a = W::eight(low[slot], i, sub_low), c = W::eight(high[slot], i, sub_high);
        const uint32_t at = base + (slot * (W::kElements / 4) + i * 2) * (kTokens * 32);
        const bool fresh = chunk % 2 == 0 && slot == 0 && i == 0 && (W::kQuantised || starts);
        wgmma<W::kHalf>(sum, {a.x, c.x, a.y, c.y}, operand(at, kTokens * 16), !fresh);
        wgmma<W::kHalf>(sum, {a.z, c.z, a.w, c.w}, operand(at + kTokens * 32, kTokens * 16), 1);
      }
    wgmma_end();
    if (threadIdx.x % 32 == 0) arrive(empty[stage]);
    next.load_subs(p, tile, first * 2 + chunk + 1);
    if (chunk % 2 == 0) {
      next.load_scales(p, tile, block + 1);
      continue;
    }
    if constexpr (W::kQuantised) {
#pragma unroll
      for (uint32_t i = 0; i < kTokens / 2; ++i)
        run[i] = fmaf(sum[i], __half2float(factors.scale[i % 4 / 2]), starts ? 0.0f : run[i]);
      if (ends) add(total, run);
    } else if (ends) {
      add(total, sum);
    }
  }
}

// Adds the groups' sums of four columns at `mine`, each group's in its block of the cluster, in order.
__device__ void add_groups(const float* mine, uint32_t groups, float (&sum)[4]) {
  float part[8][4];
#pragma unroll
  for (uint32_t from = 0; from < 8; ++from)
    if (from < groups) load_of(mine, from, part[from]);
#pragma unroll
  for (uint32_t from = 0; from < 8; ++from)
    if (from < groups)
      for (uint32_t j = 0; j < 4; ++j) sum[j] += part[from][j];
}
#endif

template <class W, uint32_t kTokens>
__global__ __launch_bounds__(kThreads, 1) void tile(const Product p, const Work work) {
#ifdef INGOT_HOPPER
  extern __shared__ __align__(128) std::byte shared[];
  const uint32_t groups = groups_of(p), group = blockIdx.x % groups, tile = blockIdx.x / groups;
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const uint32_t own_tile = tile * (kRows / kTile) + warp;
  const uint32_t blocks = run_blocks(p) * (kRuns / groups);
  const uint32_t first = min(group * blocks, p.blocks()), last = min(first + blocks, p.blocks());
  let_next_start();
  const Weights<W, kTokens> weights(p, own_tile, first, shared);
  for (uint32_t chunk = 0; chunk < stages_of<W>(kTokens) - 1; ++chunk) weights.fetch(chunk, (last - first) * 2);
  std::byte* rest = shared + stages_of<W>(kTokens) * weight_bytes<W>();
  make_operands<W, kTokens>(p, work, rest);
  const uint32_t first_token = blockIdx.y * kTokens, tokens = min(kTokens, p.tokens() - first_token);
  float total[kTokens / 2] = {};
  const uint16_t* operands = work.operands + size_t{first_token} * round_up(p.k, kQuantBlock);
  if (first < last) sum_blocks<W, kTokens>(p, weights, own_tile, operands, rest, first, last, total);
  __syncthreads();
  float* sums = reinterpret_cast<float*>(rest);
#pragma unroll
  for (uint32_t i = 0; i < kTokens / 2; ++i)
    sums[(i / 4 * 8 + 2 * t + i % 2) * kSumStride + warp * kTile + g + i % 4 / 2 * 8] = total[i];
  if (groups > 1) cluster_arrive_and_wait();
  else __syncthreads();
  const uint32_t columns = kRows / p.branches;
  for (uint32_t i = (group * kThreads + threadIdx.x) * 4; i < tokens * columns; i += groups * kThreads * 4) {
    const uint32_t token = i / columns, c = i % columns, column = tile * columns + c;
    if (column >= p.n) continue;
    float residual[4], sum[4] = {}, other[4] = {}, y[4];
    for (uint32_t j = 0; j < 4; ++j)
      residual[j] = column + j < p.n ? residual_of(p, first_token + token, column + j) : 0;
    const float* mine = sums + token * kSumStride + (p.branches == 2 ? c + c / kTile * kTile : c);
    add_groups(mine, groups, sum);
    if (p.branches == 2) add_groups(mine + kTile, groups, other);
    const float factor = p.norm ? __ldcg(work.factors + first_token + token) : 1;
    for (uint32_t j = 0; j < 4; ++j)
      if (column + j < p.n) y[j] = finished(p, column + j, sum[j] * factor, other[j] * factor, residual[j]);
    store_outputs(p.out, first_token + token, column, p.n, y);
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
  const size_t shared = shared_of<W>(p, kTokens);
  const uint32_t groups = groups_of(p);
  if (const cudaError_t error = allow_shared(kernel, shared)) return error;
  const dim3 blocks(ceil_div(p.tiles(), kRows / kTile) * groups, ceil_div(p.tokens(), kTokens));
  return launch(context, kernel, {blocks, kThreads, shared, groups}, p, work);
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
  return p.dtype != DType::f32 && device.major == 9 && shared_of<Bf16Weights>(p, 16) + 1024 <= device.shared_bytes;
}

// Of any number of tokens up to p's.
size_t tile_workspace(const Product& p) { return kCounterBytes + factor_bytes(p) + operand_bytes(p); }

cudaError_t product_tile(const Context& context, const Product& p) {
  switch (p.dtype) {
    case DType::bf16: return tile_of<Bf16Weights>(context, p);
    case DType::f16: return tile_of<F16Weights>(context, p);
    case DType::i8: return tile_of<Int8Weights>(context, p);
    case DType::i4: return tile_of<Int4Weights>(context, p);
    case DType::e4m3: return tile_of<E4m3Weights>(context, p);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace ingot::cuda

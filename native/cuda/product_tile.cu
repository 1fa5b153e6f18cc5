// Products of more than a few tokens on Hopper, in the bits of the stream kernel: a block multiplies 128 weight rows,
// 16 in the registers of each warp, with up to 128 tokens at once. One thread copies boxes of weights into shared memory,
// from the start of the launch on, and of operands, which the blocks make together first, each some rows of x, in the
// workspace. Where rows are few, the blocks of a cluster each sum a group of runs of K. One launch does all. With operands
// of e4m3 or int8 (product_tile_e4m3.h, product_tile_i8.h) weights go to the matrix instructions as they lie, in sums of
// other bits.
#include <algorithm>

#include "product_tile_e4m3.h"
#include "product_tile_i8.h"

namespace ingot::cuda {
namespace {

size_t squares_bytes(const Product& p) { return (size_t{p.tokens()} * kRuns * 4 + 255) / 256 * 256; }
uint32_t tokens_at_once(const Product& p) {
  uint32_t tokens = 16;
  while (tokens < 128 && tokens < p.tokens()) tokens *= 2;
  return tokens;
}
size_t scales_bytes(const Product& p) { return size_t{p.blocks()} * round_up(p.tokens(), 128) * 4; }
size_t operand_row_bytes(const Product& p, uint32_t size) { return size_t{round_up(p.k, kQuantBlock)} * size; }

#ifdef INGOT_HOPPER
// A warp's sums, as mma.h has them of each eight tokens, among those of all rows by token.
template <class L, uint32_t kCount>
struct Place {
  float* at;
  __device__ explicit Place(float* sums) {
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t row = L::kEight ? lane / 4 : lane_row();  // weights in shared memory are rows as they lie
    at = sums + lane % 4 * 2 * L::kSumStride + threadIdx.x / 32 * kTile + row;
  }
  __device__ float& of(uint32_t i) const { return at[(i / 4 * 8 + i % 2) * L::kSumStride + i % 4 / 2 * 8]; }
  __device__ void store(const float (&v)[kCount]) const {
#pragma unroll
    for (uint32_t i = 0; i < kCount; ++i) of(i) = v[i];
  }
  __device__ void add(const float (&v)[kCount], bool fresh) const {
#pragma unroll
    for (uint32_t i = 0; i < kCount; ++i) of(i) = (fresh ? 0.0f : of(i)) + v[i];
  }
};

// What is summed of a warp's tile, block after block: `block` by the matrix instructions; of quantised weights, times
// its scale, the run, which is kept in shared memory once it is finished, for want of registers, or at once where a run
// is a block.
template <class L>
struct Sums {
  using W = typename L::W;
  static constexpr uint32_t kCount = L::kTokens / 2;
  float block[kCount], kept[kCount];
  Place<L, kCount> place;
  uint32_t per;
  bool any = false;

  __device__ Sums(const Product& p, float* sums) : place(sums), per(run_blocks(p)) {
#pragma unroll
    for (uint32_t i = 0; i < kCount; ++i) kept[i] = 0;
  }
  __device__ bool starts(uint32_t at) const { return at % per == 0; }
  // Block `at` is summed.
  __device__ void end_block(uint32_t at, bool last, const Factors<W>& factors) {
    const bool ends = last || starts(at + 1);
    if constexpr (W::kQuantised) {
      const float scale[2] = {__half2float(factors.scale[0]), __half2float(factors.scale[1])};
      if (per == 1) {
#pragma unroll
        for (uint32_t i = 0; i < kCount; ++i) kept[i] += fmaf(block[i], scale[i % 4 / 2], 0.0f);
        return;
      }
#pragma unroll
      for (uint32_t i = 0; i < kCount; ++i) kept[i] = fmaf(block[i], scale[i % 4 / 2], starts(at) ? 0.0f : kept[i]);
      if (ends) place.add(kept, !any), any = true;
    } else if (ends) {
#pragma unroll
      for (uint32_t i = 0; i < kCount; ++i) kept[i] += block[i];
    }
  }
  __device__ void finish() {
    if (!L::kApart || per == 1 || !any) place.store(kept);
  }
};

// Sums blocks first .. last of a warp's tile.
template <class L>
__device__ void sum_blocks(const Product& p, uint32_t tile, uint32_t first, uint32_t last,
                           const L& layout, Sums<L>& sums) {
  using W = typename L::W;
  constexpr uint32_t kSteps = kQuantBlock / kStepK, kWeightSteps = L::kWeightK / kStepK,
                     kOperandSteps = L::kOperandK / kStepK;
  typename L::Rest& rest = layout.rest();
  Turn<L::kWeightStages> weights;
  Turn<L::kOperandStages> operands, freed;
  Fragment<W> fragments[2];
  Factors<W> factors, next;
  const auto load = [&](uint32_t step, const Factors<W>& factors) {
    const uint32_t within = step % kWeightSteps;
    if (within == 0) wait(rest.weights_full[weights.stage], weights.parity);
    fragments[step % 2].load(layout.weights(weights.stage), within, factors.sub_scale(step, 0),
                             factors.sub_scale(step, 1));
    if (within + 1 < kWeightSteps) return;
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive(rest.weights_empty[weights.stage]);
    weights.advance();
  };
  const auto free_operands = [&] {
    if (threadIdx.x % 32 == 0) arrive(rest.operands_empty[freed.stage]);
    freed.advance();
  };
  factors.load(p, tile, first);
  load(0, factors);
  for (uint32_t block = first; block < last; ++block) {
    if (block + 1 < last) next.load(p, tile, block + 1);
#pragma unroll
    for (uint32_t step = 0; step < kSteps; ++step) {
      if (step % kOperandSteps == 0) wait(rest.operands_full[operands.stage], operands.parity);
      const uint32_t at = shared_address(layout.operands(operands.stage)) + step % kOperandSteps * L::kTokens * kBoxBytes;
      wgmma_begin();
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i)
        wgmma<W::kHalf>(sums.block, fragments[step % 2].a[i], operand(at + i * 32),
                        step > 0 || i > 0 || !W::kQuantised && !sums.starts(block));
      wgmma_commit();
      if (step % kOperandSteps == kOperandSteps - 1) operands.advance();
      if (step > 0) wgmma_wait<1>();
      if (step > 0 && step % kOperandSteps == 0) free_operands();
      if (step < kSteps - 1) load(step + 1, factors);
      else if (block + 1 < last) load(0, next);
    }
    wgmma_wait<0>();
    settle(sums.block);
    free_operands();
    sums.end_block(block, block == last - 1, factors);
    factors = next;
  }
}

// The blocks of a cluster each finish some of the tokens, whose sums the others copy to them.
template <class L>
struct Cluster {
  uint32_t groups, group, share;  // blocks, this one among them, tokens of each
  float* own;                     // sums of this block's share
  const float* others;            // what other blocks summed of it, by block
  L layout;
  Barrier& arrived;

  __device__ Cluster(uint32_t groups, uint32_t group, uint32_t tokens, L layout, Barrier& arrived)
      : groups(groups), group(group), share(ceil_div(tokens, groups)),
        own(layout.sums() + group * share * L::kSumStride), others(layout.parts()), layout(layout), arrived(arrived) {}
  __device__ uint32_t bytes() const { return share * L::kSumStride * 4; }
  // By one thread, before anything arrives.
  __device__ void prepare() const {
    init(arrived, 1);
    expect(arrived, (groups - 1) * bytes());
  }
  // By the threads that store outputs, when this block's sums are there and its rings are free.
  __device__ void exchange() const {
    if (groups > 1) fence_shared();
    meet_block();
    if (groups == 1) return;
    cluster_arrive();
    cluster_wait();
    if (threadIdx.x < groups && threadIdx.x != group)
      copy_to(threadIdx.x, others + group * share * L::kSumStride,
              layout.sums() + threadIdx.x * share * L::kSumStride, bytes(), arrived);
    __syncwarp();
    wait(arrived, 0);
    cluster_arrive();
    add_others();
    meet_some<L::kConsumers>();
  }
  __device__ void leave() const {  // others may copy from this block until then
    if (groups > 1) cluster_wait();
  }
  // By the threads beside them.
  __device__ void stand_by() const {
    meet_block();
    if (groups == 1) return;
    cluster_arrive();
    cluster_wait();
    cluster_arrive();
    cluster_wait();
  }
  __device__ static void meet_block() { asm volatile("bar.sync 0;" ::: "memory"); }

  // This block's sums become those of all groups, added in order.
  __device__ void add_others() const {
    constexpr uint32_t kFours = L::kRows / 4;
    for (uint32_t i = threadIdx.x; i < share * kFours; i += L::kConsumers) {
      const uint32_t at = i / kFours * L::kSumStride + i % kFours * 4;
      float4 sum{};
#pragma unroll 2
      for (uint32_t from = 0; from < groups; ++from) {
        const float* part = from == group ? own : others + from * share * L::kSumStride;
        const float4 v = *reinterpret_cast<const float4*>(part + at);
        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
      }
      *reinterpret_cast<float4*>(own + at) = sum;
    }
  }
  // Sums of four columns of a token.
  __device__ const float4& sums(uint32_t token, uint32_t column) const {
    return *reinterpret_cast<const float4*>(own + token * L::kSumStride + column);
  }
};

// What finished sums are multiplied by or added to, into shared memory, by `threads` beside those that copy and multiply.
template <class L>
__device__ void load_factors(const Product& p, const Work& work, uint32_t first_row, uint32_t first_token,
                             uint32_t tokens, uint32_t thread, uint32_t threads, typename L::Rest& rest) {
  for (uint32_t i = thread; i < L::kRows; i += threads) {
    const uint32_t row = first_row + i;
    const bool exists = row < p.branches * p.n;
    rest.scales[i] = exists && p.row_scales ? p.row_scales[row] : 1;
    rest.biases[i] = exists && p.bias ? p.bias[row] : kNothing;
  }
  if (!L::kE4m3 && !p.norm) return;
  wait(rest.made, 0);
  for (uint32_t i = thread; i < tokens; i += threads) {
    const uint32_t token = first_token + i;
    if constexpr (L::kE4m3) rest.factors[i] = work.squares[token];
    else rest.factors[i] = sum_factor<typename L::W>(p, work.squares + token * kRuns, kRuns);
  }
}

// This block's share of the outputs of its rows. A thread has four columns of one token after the other, in code that is
// short and has few branches: what runs once waits for its code, which every layer fetches anew, and two warps of a
// scheduler hide no more. Residuals of the next kAhead tokens are under way.
template <class L>
__device__ void store_tile(const Product& p, const Cluster<L>& cluster, const typename L::Rest& rest, uint32_t tile,
                           uint32_t first_token, uint32_t tokens) {
  constexpr uint32_t kAhead = 4;
  const bool pair = p.branches == 2, scaled = L::kE4m3 || p.norm, wide = p.n % 4 == 0 && in_fours(p.residual);
  const uint32_t columns = L::kRows / p.branches, within = threadIdx.x * 4 % columns, column = tile * columns + within;
  const uint32_t row = pair ? within + within / kTile * kTile : within, step = L::kConsumers * 4 / columns;
  const uint32_t before = cluster.group * cluster.share;  // tokens of blocks ahead
  const uint32_t end = column < p.n && before < tokens ? min(cluster.share, tokens - before) : 0;
  const auto residuals_of = [&](uint32_t token) -> float4 {
    if (!p.residual.data || token >= end) return {kNothing, kNothing, kNothing, kNothing};
    const float* from = row_of<const float>(p.residual, first_token + before + token);
    return wide ? *reinterpret_cast<const float4*>(from + column) : residuals_apart(from, column, p.n);
  };
  uint32_t token = threadIdx.x * 4 / columns;
  float4 ahead[kAhead];
#pragma unroll
  for (uint32_t i = 0; i < kAhead; ++i) ahead[i] = residuals_of(token + i * step);
  cluster.exchange();
  const auto rows_at = [&](uint32_t at) -> FourRows {
    return {*reinterpret_cast<const float4*>(rest.scales + at), *reinterpret_cast<const float4*>(rest.biases + at)};
  };
  const FourRows rows = rows_at(row), others = rows_at(pair ? row + kTile : row);
#pragma unroll 1
  for (; token < end; token += step) {
    const float factor = scaled ? rest.factors[before + token] : 1;
    const float4 x = cluster.sums(token, row), y = cluster.sums(token, pair ? row + kTile : row);
    float sum[4] = {x.x, x.y, x.z, x.w}, other[4] = {y.x, y.y, y.z, y.w};
    for (uint32_t j = 0; j < 4; ++j) sum[j] *= factor, other[j] *= factor;
    rows.apply(p, sum);
    activate(p.activation, sum);
    if (pair) {
      others.apply(p, other);
      for (uint32_t j = 0; j < 4; ++j) sum[j] *= other[j];
    }
    sum[0] += ahead[0].x, sum[1] += ahead[0].y, sum[2] += ahead[0].z, sum[3] += ahead[0].w;
#pragma unroll
    for (uint32_t i = 1; i < kAhead; ++i) ahead[i - 1] = ahead[i];
    ahead[kAhead - 1] = residuals_of(token + kAhead * step);
    store_outputs(p.out, first_token + before + token, column, p.n, sum);
  }
}
#endif

template <class L>
__global__ __launch_bounds__(L::kThreads, 1) void tile(
    const Product p, const Work work, const __grid_constant__ CUtensorMap weights,
    const __grid_constant__ CUtensorMap operands) {
#ifdef INGOT_HOPPER
  extern __shared__ __align__(1024) std::byte shared[];
  const L layout{shared};
  typename L::Rest& rest = layout.rest();
  // Blocks of the same rows run side by side, so that their weights come once.
  const uint32_t groups = work.groups, group = blockIdx.x % groups, at = blockIdx.x / groups;
  const uint32_t shares = ceil_div(p.tokens(), L::kTokens), tile = at / shares, warp = threadIdx.x / 32;
  const uint32_t blocks = L::kEight ? ceil_div(p.blocks(), groups) : run_blocks(p) * ceil_div(kRuns, groups);
  const uint32_t first = min(group * blocks, p.blocks()), last = min(first + blocks, p.blocks());
  const uint32_t first_token = at % shares * L::kTokens, tokens = min(L::kTokens, p.tokens() - first_token);
  const Cluster<L> cluster(groups, group, L::kTokens, layout, rest.arrived);
  let_next_start();
  if (threadIdx.x == 0) cluster.prepare(), layout.prepare(), fence_barriers();
  __syncthreads();
  if (warp < L::kConsumers / 32) {
    take_registers<L::kTake>();
    const uint32_t own = tile * (L::kRows / kTile) + warp;
    make_operands<L>(p, work, layout);
    Sums<L> sums(p, layout.sums());
    if constexpr (L::kInt8) sum_i8<L>(p, own * kTile, first, last, layout, sums.kept);
    else if constexpr (L::kE4m3) sum_e4m3<L>(first, last, layout, sums.block, sums.kept);
    else if (first < last) sum_blocks<L>(p, own, first, last, layout, sums);
    meet_some<L::kConsumers>();
    sums.finish();
    store_tile<L>(p, cluster, rest, tile, first_token, tokens);
    cluster.leave();
  } else {
    leave_registers<L::kLeave>();
    constexpr uint32_t kCopies = L::kConsumers, kBeside = kCopies + 32;
    if (threadIdx.x == kCopies)
      copy_all<L>(p, work, weights, operands, layout, tile * L::kRows, first_token, first, last);
    else if (threadIdx.x >= kBeside)
      load_factors<L>(p, work, tile * L::kRows, first_token, tokens, threadIdx.x - kBeside, L::kThreads - kBeside, rest);
    __syncwarp();
    cluster.stand_by();
  }
#endif
}

template <class L>
cudaError_t launch_tile(const Context& context, const Product& p) {
  const auto kernel = tile<L>;
  const uint32_t shared = L::kBytes, groups = groups_of(p, L::kEight ? p.blocks() : kRuns);
  const uint32_t blocks = ceil_div(p.tiles(), L::kRows / kTile) * groups * ceil_div(p.tokens(), L::kTokens);
  std::byte* const at = context.workspace.data + kCounterBytes;
  std::byte* const behind = at + squares_bytes(p);
  // Blocks start in order, each on a multiprocessor of its own; clusters leave some of these out. No later launch's
  // start before all of this one's have, so those that make operands wait for nothing but the launch before.
  const uint32_t together = std::max(context.device.processors / (groups > 1 ? 4 : 1) * (groups > 1 ? 3 : 1), 1);
  const Work work{reinterpret_cast<Counters*>(context.workspace.data),
                  reinterpret_cast<float*>(at),
                  reinterpret_cast<float*>(behind),
                  reinterpret_cast<uint16_t*>(behind + (L::kInt8 ? scales_bytes(p) : 0)),
                  round_up(p.tokens(), L::kTokens),
                  ceil_div(p.tokens(), std::min(blocks, together)),
                  groups};
  CUtensorMap weights, operands;
  cudaError_t error = map_rows(weights, p.weight, Held<typename L::W>::row_bytes(p), p.tiles() * kTile, L::kRows);
  if (!error) error = map_rows(operands, work.operands, operand_row_bytes(p, L::kSize), p.tokens(), L::kTokens);
  if (!error) error = allow_shared(kernel, shared);
  if (error) return error;
  return launch(context, kernel, {blocks, L::kThreads, shared, groups}, p, work, weights, operands);
}

template <class W>
cudaError_t tile_of(const Context& context, const Product& p) {
  switch (tokens_at_once(p)) {
    case 16: return launch_tile<Layout<W, 16>>(context, p);
    case 32: return launch_tile<Layout<W, 32>>(context, p);
    case 64: return launch_tile<Layout<W, 64>>(context, p);
    default: return launch_tile<Layout<W, 128>>(context, p);
  }
}

}  // namespace

bool tile_can(const Device& device, const Product& p) {
  return p.dtype != DType::f32 && device.major == 9 && device.shared_bytes >= 227 * 1024;
}

bool tile_rounded_can(const Device& device, const Product& p) {
  return (p.dtype == DType::e4m3 || p.dtype == DType::i8) && tile_can(device, p);
}

// Of any number of tokens up to p's.
size_t tile_workspace(const Product& p) {
  return kCounterBytes + squares_bytes(p) + p.tokens() * operand_row_bytes(p, 2);
}
size_t tile_rounded_workspace(const Product& p) {
  return kCounterBytes + squares_bytes(p) + scales_bytes(p) + p.tokens() * operand_row_bytes(p, 1);
}

cudaError_t product_tile_rounded(const Context& context, const Product& p) {
  return p.dtype == DType::i8 ? tile_of<Int8Both>(context, p) : tile_of<E4m3Both>(context, p);
}

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

// Products of few tokens: every weight is read once, straight from memory into the registers of the warp that multiplies
// it. A block of 8 warps takes tiles of 16 weight rows; each warp sums one segment of K of all of them, and the segments
// meet in shared memory.
#include "mma.h"
#include "product_kernels.h"

namespace ingot::cuda {
namespace {

constexpr uint32_t kWarps = kSegments, kThreads = kWarps * 32;
constexpr uint32_t kPartialStride = 20;  // floats of a token's 16 sums, apart so that a warp's stores meet no bank twice

// Elements from one token's x to the next one's in shared memory; 64 bytes past a multiple of 128, so that tokens
// alternate between halves of the banks.
__host__ __device__ constexpr uint32_t staged_stride(uint32_t k) { return round_up(k, kQuantBlock) + 32; }

size_t partial_bytes(const Product& p, uint32_t columns) {
  return size_t{2} * p.branches * kWarps * columns * kPartialStride * sizeof(float);
}
size_t staged_bytes(const Product& p, uint32_t tokens) { return tokens * (staged_stride(p.k) * size_t{2} + 4 + 4 * kWarps); }

// Where a lane is in its warp's stream of weights: block `block` of tile `tile`.
struct Cursor {
  uint32_t tile, block;
  __device__ void advance(uint32_t first, uint32_t last, uint32_t branches) {
    if (++block < last) return;
    block = first;
    tile = (tile + 1) % branches ? tile + 1 : tile + 1 + (gridDim.x - 1) * branches;
  }
};

// The weights of one block of 16 rows, spread over a warp: rows g and g + 8 of each slot.
template <class W>
struct Held {
  static constexpr uint32_t kSlots = kQuantBlock / (4 * W::kElements);
  uint4 low[kSlots], high[kSlots];
  int8_t sub_low[kSlots], sub_high[kSlots];
  __half scale_low, scale_high;

  __device__ void load(const Product& p, const Cursor& at, uint32_t slot) {
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const uint32_t k = at.block * kQuantBlock + (slot * 4 + t) * W::kElements;
    const size_t row = size_t{at.tile} * kTile + g, stride = row_bytes(p);
    const bool valid = at.tile < p.tiles() && k < round_up(p.k, kPadK);
    const std::byte* from = p.weight + row * stride + k / W::kElements * 16;
    low[slot] = load_weights(from, valid);
    high[slot] = load_weights(from + 8 * stride, valid);
    if constexpr (W::kInterleaved) {
      const uint32_t groups = ceil_div(p.k, kQuantGroup);
      const int8_t* sub = p.sub_scales + row * groups + k / kQuantGroup;
      sub_low[slot] = valid ? __ldg(sub) : 0;
      sub_high[slot] = valid ? __ldg(sub + 8 * groups) : 0;
    }
  }
  __device__ void load_scales(const Product& p, const Cursor& at) {
    if constexpr (W::kQuantised) {
      const size_t row = size_t{at.tile} * kTile + threadIdx.x % 32 / 4;
      if (at.tile >= p.tiles()) return;
      scale_low = __ldg(p.scales + row * p.blocks() + at.block);
      scale_high = __ldg(p.scales + (row + 8) * p.blocks() + at.block);
    }
  }
  __device__ static size_t row_bytes(const Product& p) { return size_t{round_up(p.k, kPadK)} / W::kElements * 16; }
};

// Rows first .. first + tokens of x into shared memory as 16-bit operands, times their norm's weight; inverse root mean
// squares beside them. Calls wait_for_inputs.
template <class W>
__device__ void stage(const Product& p, uint32_t first, uint32_t tokens, uint16_t* staged, float* squares, float* factors) {
  constexpr uint32_t kGroups = 4, kSpan = kThreads * 4 * kGroups;
  const uint32_t end = round_up(p.k, kQuantBlock), stride = staged_stride(p.k), warp = threadIdx.x / 32;
  const bool wide = p.k % 4 == 0 && p.x.stride % 16 == 0 && reinterpret_cast<size_t>(p.x.data) % 16 == 0;
  for (uint32_t base = 0; base < end; base += kSpan) {
    float weight[kGroups][4];
    for (uint32_t i = 0; i < kGroups; ++i)
      for (uint32_t j = 0; j < 4; ++j) {
        const uint32_t c = base + (i * kThreads + threadIdx.x) * 4 + j;
        weight[i][j] = p.norm ? (c < p.k ? p.norm_offset + __ldg(p.norm + c) : 0) : 1;
      }
    if (base == 0) wait_for_inputs();
    for (uint32_t token = 0; token < tokens; ++token) {
      float v[kGroups][4], sum = 0;
      for (uint32_t i = 0; i < kGroups; ++i) load_four(p.x, first + token, base + (i * kThreads + threadIdx.x) * 4, p.k, wide, v[i]);
      for (uint32_t i = 0; i < kGroups; ++i)
        for (uint32_t j = 0; j < 4; ++j) {
          sum = fmaf(v[i][j], v[i][j], sum);
          v[i][j] *= weight[i][j];
        }
      if (p.norm) {
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0) squares[token * kWarps + warp] = base ? squares[token * kWarps + warp] + sum : sum;
      }
      for (uint32_t i = 0; i < kGroups; ++i) {
        const uint32_t c = base + (i * kThreads + threadIdx.x) * 4;
        if (c >= end) continue;
        const uint2 four{pack<W::kHalf>(v[i][0], v[i][1]), pack<W::kHalf>(v[i][2], v[i][3])};
        uint16_t* to = staged + token * stride;
        if constexpr (W::kInterleaved) {  // 0 4 1 5 2 6 3 7: this is the first or the second four
          uint16_t* eight = to + c / 8 * 8 + c % 8 / 4;
          eight[0] = uint16_t(four.x), eight[2] = four.x >> 16, eight[4] = uint16_t(four.y), eight[6] = four.y >> 16;
        } else {
          *reinterpret_cast<uint2*>(to + c) = four;
        }
      }
    }
  }
  __syncthreads();
  for (uint32_t token = threadIdx.x; token < tokens; token += kThreads) factors[token] = inverse_rms(p, squares + token * kWarps, kWarps);
  __syncthreads();
}

template <class W, uint32_t kColumns>  // tokens at once, in eights
__global__ __launch_bounds__(kThreads, kColumns == 1 ? 2 : 1) void stream(const Product p, uint32_t tokens_per_pass) {
  extern __shared__ __align__(16) std::byte shared[];
  const uint32_t first_token = blockIdx.y * tokens_per_pass;
  const uint32_t tokens = min(tokens_per_pass, p.tokens() - first_token);
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  float* partials = reinterpret_cast<float*>(shared);
  const uint32_t tile_floats = kWarps * kColumns * 8 * kPartialStride;
  uint16_t* staged = reinterpret_cast<uint16_t*>(partials + 2 * p.branches * tile_floats);
  float* factors = reinterpret_cast<float*>(staged + size_t{tokens} * staged_stride(p.k));
  float* squares = factors + tokens;

  const uint32_t tiles = p.tiles(), per = p.segment_blocks(), warps = ceil_div(p.blocks(), per);
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
  stage<W>(p, first_token, tokens, staged, squares, factors);

  uint32_t parity = 0;
  for (uint32_t item = blockIdx.x; item * p.branches < tiles; item += gridDim.x, parity ^= 1) {
    float* meeting = partials + parity * p.branches * tile_floats;
    for (uint32_t branch = 0; branch < p.branches && works; ++branch) {
      float sum[kColumns][4] = {};
      for (uint32_t block = first; block < last; ++block) {
        float block_sum[kColumns][4] = {};
        const float scale_low = W::kQuantised ? __half2float(held.scale_low) : 1, scale_high = W::kQuantised ? __half2float(held.scale_high) : 1;
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
    // The threads that finish are others each time, so that no warp's stream waits for all.
    const uint32_t thread = (threadIdx.x + item / gridDim.x * 32) % kThreads;
    for (uint32_t i = thread; i < kTile * tokens; i += kThreads) {
      const uint32_t token = i / kTile, row = i % kTile, column = item * kTile + row;
      if (column >= p.n) continue;
      float sums[2] = {};
      for (uint32_t branch = 0; branch < p.branches; ++branch)
        for (uint32_t w = 0; w < warps; ++w)
          sums[branch] += meeting[branch * tile_floats + (w * kColumns * 8 + token) * kPartialStride + row];
      const float factor = p.norm ? factors[token] : 1;
      finish(p, first_token + token, column, sums[0] * factor, sums[1] * factor);
    }
  }
}

template <class W, uint32_t kColumns>
cudaError_t launch_stream(const Context& context, const Product& p, uint32_t tokens_per_pass) {
  const size_t shared = partial_bytes(p, kColumns * 8) + staged_bytes(p, tokens_per_pass);
  const auto kernel = stream<W, kColumns>;
  if (const cudaError_t error = allow_shared(kernel, context.device)) return error;
  const uint32_t items = p.tiles() / p.branches + (p.tiles() % p.branches != 0);
  const uint32_t most = context.device.processors * (shared * 2 <= context.device.shared_bytes ? 2 : 1);
  return launch(context, kernel,
                {{items < most ? items : most, ceil_div(p.tokens(), tokens_per_pass)}, kThreads, shared}, p, tokens_per_pass);
}

template <class W>
cudaError_t stream_of(const Context& context, const Product& p) {
  uint32_t tokens = p.tokens() < kStreamTokens ? p.tokens() : kStreamTokens;
  while (tokens > 1 && partial_bytes(p, round_up(tokens, 8)) + staged_bytes(p, tokens) > context.device.shared_bytes) --tokens;
  tokens = ceil_div(p.tokens(), ceil_div(p.tokens(), tokens));  // passes alike
  if (tokens <= 8) return launch_stream<W, 1>(context, p, tokens);
  if (tokens <= 16) return launch_stream<W, 2>(context, p, tokens);
  return launch_stream<W, 4>(context, p, tokens);
}

}  // namespace

cudaError_t product_stream(const Context& context, const Product& p) {
  switch (p.dtype) {
    case DType::bf16: return stream_of<Bf16Weights>(context, p);
    case DType::f16: return stream_of<F16Weights>(context, p);
    case DType::i8: return stream_of<Int8Weights>(context, p);
    case DType::i4: return stream_of<Int4Weights>(context, p);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace ingot::cuda

// Attention over paged keys and values (abi/ops/attention.ts): appends those of this step, then gives each head of each
// token its soft-max weighted sum (FlashAttention and Flash-Decoding: Dao et al., 2022 and 2023). A row's sums take its
// positions in tiles of 64 and splits of 256, at absolute positions and merged in order, with the same instruction
// whichever kernel computes them: its bits do not depend on the batch, or on the chunks that a prompt came in.
#include <algorithm>

#include "attention_plain.h"
#include "attention_rows.h"
#include "attention_tiles.h"

namespace ingot::cuda {
namespace paged {
namespace {

constexpr uint32_t kAppendWarps = 4, kMostDim = 512;

size_t append_bytes(const Attention& a) { return kAppendWarps * (a.dim + 2 * a.pairs) * sizeof(float); }

// Norms, turns and stores the keys and values of this step: a head of a token a warp.
__global__ void __launch_bounds__(32 * kAppendWarps) append(const __grid_constant__ Attention a) {
  extern __shared__ float memory[];
  wait_for_inputs();
  let_next_start();
  const uint32_t warp = threadIdx.x / 32, unit = blockIdx.x * kAppendWarps + warp;
  const uint32_t t = unit / a.kv_heads, h = unit % a.kv_heads;
  if (t >= a.tokens) return;
  float2* angles = reinterpret_cast<float2*>(memory) + warp * a.pairs;
  float* head = memory + kAppendWarps * 2 * a.pairs + warp * a.dim;
  Lanes<kMostDim / 32> key, value;
  key.read(a, a.k + t * a.k_stride + h * a.head_dim);
  value.read(a, a.v + t * a.v_stride + h * a.head_dim);
  const uint32_t sequence = uint32_t(a.token_sequence[t]), p = a.position(sequence, t);
  find_angles(a, a.positions[t], angles, threadIdx.x % 32, 32);
  key.write(a, head);
  turn(a, head, a.k_norm, angles);
  store_head(a, sequence, p, 0, h, head);
  __syncwarp();
  value.write(a, head);
  __syncwarp();
  store_head(a, sequence, p, 1, h, head);
}

// Room for sums of splits: counters first, which stay zero between launches, then slots of a split each.
constexpr uint32_t kSlots = 8192;
constexpr size_t kCounterBytes = kSlots * sizeof(uint32_t);
constexpr size_t kMostSumBytes = size_t(32) << 20;

bool is_paged(const Call& call) {
  return call.as<op::attention::Params>().causal && call.states[op::attention::state_kv];
}
uint32_t padded(uint32_t dim) { return (dim + 15) / 16 * 16; }

Attention describe(const Context& context, const Call& call) {
  const auto& p = call.as<op::attention::Params>();
  const DeviceStep& step = context.step;
  const State& state = call.states[op::attention::state_kv];
  const bool paged = is_paged(call);
  const Matrix &q = call.inputs[op::attention::in_q], &k = call.inputs[op::attention::in_k];
  const Matrix &v = call.inputs[op::attention::in_v], &out = call.outputs[op::attention::out_out];
  Attention a{};
  a.q = q.row<float>(0);
  a.k = k.row<float>(0);
  a.v = v.row<float>(0);
  a.q_stride = q.stride / sizeof(float);
  a.k_stride = k.stride / sizeof(float);
  a.v_stride = v.stride / sizeof(float);
  a.out = out.data;
  a.out_stride = out.stride;
  a.out_dtype = out.dtype;
  a.inv_freq = call.weights[op::attention::weight_inv_freq].as<float>();
  a.q_norm = call.weights[op::attention::weight_q_norm].as<float>();
  a.k_norm = call.weights[op::attention::weight_k_norm].as<float>();
  a.state = paged ? state.base : context.workspace.data + kCounterBytes;
  a.unit = state.size;
  a.dtype = paged ? state.dtype : DType::f32;
  a.positions = step.positions;
  a.token_sequence = step.token_sequence;
  a.sequence_start = step.sequence_start;
  a.block_table = paged ? step.block_table : nullptr;
  a.tokens = step.tokens;
  a.sequences = step.sequences;
  a.blocks_per_sequence = step.blocks_per_sequence;
  a.heads = p.heads;
  a.kv_heads = p.kv_heads;
  a.group = p.heads / p.kv_heads;
  a.head_dim = p.head_dim;
  a.dim = padded(p.head_dim);
  a.causal = p.causal;
  a.window = p.window;
  a.pairs = p.rope_dim / 2;
  a.style = RopeStyle(p.rope_style);
  a.scale = p.scale;
  a.softcap = p.softcap;
  a.factor = p.attention_factor;
  a.eps = p.norm_eps;
  a.offset = p.norm_offset;
  return a;
}

// Tiles of `rows` rows that this step's sequences can need at most.
uint32_t most_tiles(const Attention& a, uint32_t rows) {
  return uint32_t((uint64_t(a.tokens) * a.group + rows - 1) / rows) + a.sequences;
}

cudaError_t launch_append(const Context& context, const Attention& a) {
  const uint32_t blocks = (a.tokens * a.kv_heads + kAppendWarps - 1) / kAppendWarps;
  return launch(context, append, {blocks, 32 * kAppendWarps, append_bytes(a)}, a);
}

// A kernel may take more than 48 KB only once it has been allowed to.
template <class... P, class... A>
cudaError_t launch_large(const Context& context, void (*kernel)(P...), const Grid& grid, const A&... arguments) {
  if (cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               int(grid.shared_bytes)))
    return error;
  return launch(context, kernel, grid, arguments...);
}

size_t slot_bytes(uint32_t group, uint32_t dim) { return std::min(group, 16u) * (dim + 2) * sizeof(float); }
uint32_t slots_of(size_t slot_bytes) { return uint32_t(std::min(size_t(kSlots), kMostSumBytes / slot_bytes)); }

// As many blocks as are resident at once, where splits and slots allow it: a merge costs more than a tail.
Parts cut(const Context& context, const Attention& a, uint32_t items, size_t block_bytes) {
  const uint32_t resident = uint32_t(context.device.processors) * uint32_t(std::max<size_t>(
                                1, std::min<size_t>(8, context.device.shared_bytes / (block_bytes + 1024))));
  const uint32_t splits = (std::max(context.shape.max_length, 1u) + kSplit - 1) / kSplit;
  const bool fits = uint64_t(items) * splits <= slots_of(slot_bytes(a.group, a.dim));
  const uint32_t parts = fits ? std::clamp(resident / items, 1u, splits) : 1;
  std::byte* memory = context.workspace.data;
  return {parts, splits, reinterpret_cast<uint32_t*>(memory), reinterpret_cast<float*>(memory + kCounterBytes)};
}

template <class T, bool Int8, int Dim, bool Exact>
cudaError_t launch_rows(const Context& context, const Attention& a) {
  if (context.shape.decode) {
    using Layout = RowsLayout<T, Int8, Dim, Exact, true>;
    const uint32_t tiles = (a.group + Layout::kRows - 1) / Layout::kRows;
    const Parts parts = cut(context, a, a.sequences * tiles * a.kv_heads, Layout::bytes(a));
    const Grid grid{dim3(parts.parts, a.kv_heads, a.sequences * tiles), Layout::kThreads, Layout::bytes(a)};
    return launch_large(context, decode_rows<T, Int8, Dim, Exact>, grid, a, parts);
  }
  if (cudaError_t error = launch_append(context, a)) return error;
  if constexpr (Exact && !Int8) {
    using Layout = TilesLayout<Dim>;
    const Grid grid{dim3(a.kv_heads, most_tiles(a, Layout::kRows)), Layout::kThreads, Layout::template bytes<T>(a)};
    return launch_large(context, attend_tiles<T, Dim>, grid, a);
  } else {
    using Layout = RowsLayout<T, Int8, Dim, Exact, false>;
    const Grid grid{dim3(a.kv_heads, most_tiles(a, Layout::kRows)), Layout::kThreads, Layout::bytes(a)};
    return launch_large(context, attend_rows<T, Int8, Dim, Exact>, grid, a);
  }
}

template <class T, bool Int8>
cudaError_t launch_rows(const Context& context, const Attention& a) {
  if (a.head_dim == 64) return launch_rows<T, Int8, 64, true>(context, a);
  if (a.head_dim == 128) return launch_rows<T, Int8, 128, true>(context, a);
  if (a.dim <= 128) return launch_rows<T, Int8, 128, false>(context, a);
  if (a.dim <= 256) return launch_rows<T, Int8, 256, false>(context, a);
  return launch_rows<T, Int8, 512, false>(context, a);
}

cudaError_t launch_plain(const Context& context, const Attention& a) {
  if (cudaError_t error = launch_append(context, a)) return error;
  return launch_large(context, attend_plain,
                      {dim3(most_tiles(a, kPlainRows), a.kv_heads), 32 * kPlainRows, plain_bytes(a)}, a);
}

}  // namespace
}  // namespace paged

size_t attention_workspace(const Device&, const Call& call) {
  const auto& p = call.as<op::attention::Params>();
  const size_t dim = paged::padded(p.head_dim), slot = paged::slot_bytes(p.heads / p.kv_heads, uint32_t(dim));
  const size_t tokens = call.inputs[op::attention::in_k].rows;
  return paged::kCounterBytes +
         (paged::is_paged(call) ? paged::slots_of(slot) * slot : tokens * 2 * p.kv_heads * dim * sizeof(float));
}

cudaError_t attention(const Context& context, const Call& call) {
  const paged::Attention a = paged::describe(context, call);
  switch (a.dtype) {
    case DType::f32: return paged::launch_plain(context, a);
    case DType::f16: return paged::launch_rows<__half, false>(context, a);
    case DType::i8: return paged::launch_rows<__nv_bfloat16, true>(context, a);
    default: return paged::launch_rows<__nv_bfloat16, false>(context, a);
  }
}

}  // namespace ingot::cuda

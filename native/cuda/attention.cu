// Attention over paged keys and values (abi/ops/attention.ts): appends those of this step, then gives each head of each
// token its soft-max weighted sum (FlashAttention and Flash-Decoding: Dao et al., 2022 and 2023). A row's sums take its
// positions in tiles of 64 and splits of 256, at absolute positions and merged in order, with the same instruction
// whichever kernel computes them: its bits do not depend on the batch, or on the chunks that a prompt came in.
#include "attention_plain.h"
#include "attention_rows.h"

namespace ingot::cuda {
namespace paged {
namespace {

constexpr uint32_t kAppendWarps = 4;

// Norms, turns and stores the keys and values of this step: a head of a token a warp.
__global__ void __launch_bounds__(32 * kAppendWarps) append(const __grid_constant__ Attention a) {
  extern __shared__ float heads[];
  wait_for_inputs();
  let_next_start();
  float* head = heads + threadIdx.x / 32 * a.dim;
  const uint32_t unit = blockIdx.x * kAppendWarps + threadIdx.x / 32, t = unit / a.kv_heads, h = unit % a.kv_heads;
  if (t >= a.tokens) return;
  const uint32_t sequence = uint32_t(a.token_sequence[t]), p = a.position(sequence, t);
  take_head(a, a.k + t * a.k_stride + h * a.head_dim, a.k_norm, a.positions[t], true, head);
  store_head(a, sequence, p, 0, h, head);
  take_head(a, a.v + t * a.v_stride + h * a.head_dim, nullptr, 0, false, head);
  store_head(a, sequence, p, 1, h, head);
}

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
  a.state = paged ? state.base : context.workspace.data;
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
  return launch(context, append, {blocks, 32 * kAppendWarps, kAppendWarps * a.dim * sizeof(float)}, a);
}

// A kernel may take more than 48 KB only once it has been allowed to.
template <class... P>
cudaError_t launch_large(const Context& context, void (*kernel)(P...), const Grid& grid, const Attention& a) {
  if (cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               int(grid.shared_bytes)))
    return error;
  return launch(context, kernel, grid, a);
}

template <class T, bool Int8, int Dim>
cudaError_t launch_rows(const Context& context, const Attention& a) {
  using Layout = RowsLayout<T, Int8, Dim>;
  const dim3 blocks(most_tiles(a, Layout::kRows), a.kv_heads);
  return launch_large(context, attend_rows<T, Int8, Dim>, {blocks, Layout::kThreads, Layout::bytes(a.dim)}, a);
}

template <class T, bool Int8>
cudaError_t launch_rows(const Context& context, const Attention& a) {
  if (a.dim <= 64) return launch_rows<T, Int8, 64>(context, a);
  if (a.dim <= 128) return launch_rows<T, Int8, 128>(context, a);
  if (a.dim <= 256) return launch_rows<T, Int8, 256>(context, a);
  return launch_rows<T, Int8, 512>(context, a);
}

cudaError_t launch_plain(const Context& context, const Attention& a) {
  return launch_large(context, attend_plain,
                      {dim3(most_tiles(a, kPlainRows), a.kv_heads), 32 * kPlainRows, plain_bytes(a.dim)}, a);
}

}  // namespace
}  // namespace paged

size_t attention_workspace(const Device&, const Call& call) {
  const auto& p = call.as<op::attention::Params>();
  if (paged::is_paged(call)) return 0;
  return size_t(call.inputs[op::attention::in_k].rows) * 2 * p.kv_heads * paged::padded(p.head_dim) * sizeof(float);
}

cudaError_t attention(const Context& context, const Call& call) {
  const paged::Attention a = paged::describe(context, call);
  if (cudaError_t error = paged::launch_append(context, a)) return error;
  switch (a.dtype) {
    case DType::f32: return paged::launch_plain(context, a);
    case DType::f16: return paged::launch_rows<__half, false>(context, a);
    case DType::i8: return paged::launch_rows<__nv_bfloat16, true>(context, a);
    default: return paged::launch_rows<__nv_bfloat16, false>(context, a);
  }
}

}  // namespace ingot::cuda

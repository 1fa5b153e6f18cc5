// Attention over paged keys and values (abi/ops/attention.ts): appends those of this step, then gives each head of each
// token its soft-max weighted sum (FlashAttention and Flash-Decoding: Dao et al., 2022 and 2023). A row's sums take its
// positions in tiles of 64 and splits of 128, at absolute positions and merged in order, with the same instruction
// whichever kernel computes them: its bits do not depend on the batch, or on the chunks that a prompt came in.
#include <algorithm>

#include "attention_few.h"
#include "attention_many.h"
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

// Room for sums of splits, in slots of a split each, which are zeros between launches.
constexpr uint32_t kSlots = 8192;
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

size_t slot_bytes(uint32_t group, uint32_t dim) { return std::min(group, 16u) * dim / 2 * sizeof(uint4); }
uint32_t slots_of(size_t slot_bytes) { return uint32_t(std::min(size_t(kSlots), kMostSumBytes / slot_bytes)); }

// As many blocks as are resident at once, where splits and slots allow it: a merge costs more than a tail.
Parts cut(const Context& context, const Attention& a, uint32_t items, size_t block_bytes) {
  const uint32_t resident = uint32_t(context.device.processors) * uint32_t(std::max<size_t>(
                                1, std::min<size_t>(8, context.device.shared_bytes / (block_bytes + 1024))));
  const uint32_t splits = (std::max(context.shape.max_length, 1u) + kSplit - 1) / kSplit;
  const bool fits = uint64_t(items) * splits <= slots_of(slot_bytes(a.group, a.dim));
  const uint32_t parts = fits ? std::clamp(resident / items, 1u, splits) : 1;
  return {parts, splits, 0, reinterpret_cast<uint4*>(context.workspace.data)};
}

uint32_t row_tiles(const Attention& a) { return (a.group + 15) / 16; }

// Whether a decode step has few sequences for this device, or so many that warps with a head of keys each fill it.
bool few(const Device& device, const Attention& a) {
  return 2 * a.sequences * row_tiles(a) * a.kv_heads <= uint32_t(device.processors);
}
bool many(const Device& device, const Attention& a) {
  return a.sequences * a.kv_heads >= 3 * uint32_t(device.processors);
}

constexpr size_t kMostSent = 32 * 1024;  // bytes that meet in a cluster

// Heads that the kernel for few sequences takes.
template <bool Int8, int Dim, bool Exact, bool Lean>
constexpr bool kFew = Exact && !Int8 && (Dim == 64 || Lean);

template <class T, int Dim>
cudaError_t launch_few(const Context& context, const Attention& a) {
  using Layout = FewLayout<T, Dim>;
  const uint32_t tiles = a.sequences * row_tiles(a);
  Parts parts = cut(context, a, tiles * a.kv_heads, Layout::kBytes);
  Grid grid{dim3(parts.parts, a.kv_heads, tiles), Layout::kThreads, Layout::kBytes, 1, kSharedPercent};
  const size_t sent = parts.splits * Layout::sent_floats(std::min(a.group, Layout::kRows)) * sizeof(float);
  const size_t shared = (Layout::kBytes + 15) / 16 * 16 + 16 + sent;
  if (context.device.major >= 9 && parts.parts > 1 && parts.parts <= Layout::kMostParts && sent <= kMostSent &&
      shared <= context.device.shared_bytes) {
    parts.clustered = 1;
    grid.cluster = parts.parts;
    grid.shared_bytes = shared;
  }
  return launch_large(context, decode_few<T, Dim>, grid, a, parts);
}

template <class T, bool Int8, int Dim, bool Exact, bool Lean>
cudaError_t launch_decode(const Context& context, const Attention& a) {
  if constexpr (kFew<Int8, Dim, Exact, Lean>) {
    return launch_few<T, Dim>(context, a);
  } else {
    using Layout = RowsLayout<T, Int8, Dim, Exact, true, Lean>;
    const uint32_t tiles = a.sequences * row_tiles(a);
    const Parts parts = cut(context, a, tiles * a.kv_heads, Layout::bytes(a));
    const Grid grid{dim3(parts.parts, a.kv_heads, tiles), Layout::kThreads, Layout::bytes(a)};
    return launch_large(context, decode_rows<T, Int8, Dim, Exact, Lean>, grid, a, parts);
  }
}

template <class T, int Dim>
cudaError_t launch_many(const Context& context, const Attention& a) {
  using Layout = ManyLayout<Dim>;
  CUtensorMap map;
  if (cudaError_t error = describe_pages(a, Layout::kBox, map)) return error;
  const uint32_t items = a.sequences * a.kv_heads, blocks = std::min(items, uint32_t(context.device.processors));
  const Layout layout(std::min((items + blocks - 1) / blocks, Layout::kMostWarps));
  const Grid grid{blocks, 32 * layout.warps, layout.bytes()};
  return launch_large(context, decode_many<T, Dim>, grid, a, map);
}

template <class T, bool Int8, int Dim, bool Exact, bool Lean>
cudaError_t launch_rows(const Context& context, const Attention& a) {
  using Layout = RowsLayout<T, Int8, Dim, Exact, false, Lean>;
  const Grid grid{dim3(a.kv_heads, most_tiles(a, Layout::kRows)), Layout::kThreads, Layout::bytes(a)};
  return launch_large(context, attend_rows<T, Int8, Dim, Exact, Lean>, grid, a);
}

template <class T, int Dim>
cudaError_t launch_tiles(const Context& context, const Attention& a) {
  using Layout = TilesLayout<Dim>;
  const Grid grid{dim3(a.kv_heads, most_tiles(a, Layout::kRows)), Layout::kThreads, Layout::template bytes<T>(a)};
  return launch_large(context, attend_tiles<T, Dim>, grid, a);
}

// The kernels for heads of one size: how they are launched, and the shared memory of the leanest that will do.
template <class T, bool Int8, int Dim, bool Exact>
struct Heads {
  // Whether there are kernels that take less shared memory: for heads of 65 to 128 elements of 16 bits.
  static constexpr bool kLean = Dim == 128 && !Int8, kTiles = Exact && !Int8;

  // Whether the kernel for many sequences can serve.
  static bool can_many(const Device& device, const Attention& a) {
    if constexpr (!kTiles) return false;
    else
      return device.major == 9 && a.group <= ManyLayout<Dim>::kRows &&
             ManyLayout<Dim>::kMostBytes <= device.shared_bytes;
  }

  // What a decode step can choose from: all kernels give the same bits.
  static Choices choices(const Device& device, const Attention& a) {
    const bool has_many = can_many(device, a);
    const bool wide = kLean && RowsLayout<T, Int8, Dim, Exact, true, false>::bytes(a) <= device.shared_bytes;
    if (!kLean && !has_many) return {};
    Choices found{0, has_many && many(device, a)               ? Choice::many
                     : wide && !(Exact && few(device, a)) ? Choice::wide
                                                          : Choice::lean};
    if (!wide && !has_many) return found;
    found.add(Choice::lean);
    if (wide) found.add(Choice::wide);
    if (has_many) found.add(Choice::many);
    return found;
  }
  static cudaError_t decode(const Context& context, const Attention& a) {
    const Choice rule = choices(context.device, a).rule;
    const Choice choice = context.choice == Choice::rules ? rule : context.choice;
    if constexpr (kTiles)
      if (choice == Choice::many) return launch_many<T, Dim>(context, a);
    if constexpr (kLean)
      if (choice == Choice::lean) return launch_decode<T, Int8, Dim, Exact, true>(context, a);
    return launch_decode<T, Int8, Dim, Exact, false>(context, a);
  }
  static cudaError_t prompts(const Context& context, const Attention& a) {
    if (cudaError_t error = launch_append(context, a)) return error;
    const size_t most = context.device.shared_bytes;
    if constexpr (kTiles) {
      if (!kLean || TilesLayout<Dim>::template bytes<T>(a) <= most) return launch_tiles<T, Dim>(context, a);
    } else {
      if (!kLean || RowsLayout<T, Int8, Dim, false, false, false>::bytes(a) <= most)
        return launch_rows<T, Int8, Dim, Exact, false>(context, a);
    }
    if constexpr (kLean) return launch_rows<T, Int8, Dim, false, true>(context, a);
    return cudaErrorInvalidValue;
  }
  static size_t least_bytes(const Attention& a) {
    const size_t decode = kFew<Int8, Dim, Exact, kLean> ? FewLayout<T, Dim>::kBytes
                                                         : RowsLayout<T, Int8, Dim, Exact, true, kLean>::bytes(a);
    if constexpr (kTiles && !kLean) return std::max(decode, TilesLayout<Dim>::template bytes<T>(a));
    return std::max(decode, RowsLayout<T, Int8, Dim, Exact && !kLean, false, kLean>::bytes(a));
  }
};

template <class T, bool Int8, class F>
auto with_heads(const Attention& a, const F& f) {
  if (a.head_dim == 64) return f(Heads<T, Int8, 64, true>{});
  if (a.head_dim == 128) return f(Heads<T, Int8, 128, true>{});
  if (a.dim <= 128) return f(Heads<T, Int8, 128, false>{});
  if (a.dim <= 256) return f(Heads<T, Int8, 256, false>{});
  return f(Heads<T, Int8, 512, false>{});
}

template <class F>
auto with_state(const Attention& a, const F& f) {
  switch (a.dtype) {
    case DType::f16: return with_heads<__half, false>(a, f);
    case DType::i8: return with_heads<__nv_bfloat16, true>(a, f);
    default: return with_heads<__nv_bfloat16, false>(a, f);
  }
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
  return paged::is_paged(call) ? paged::slots_of(slot) * slot : tokens * 2 * p.kv_heads * dim * sizeof(float);
}

namespace paged {
namespace {

// The shapes of a call, and what its keys and values are kept in; f32: by no state that is paged, or in f32.
Attention heads_of(const Call& call) {
  const auto& p = call.as<op::attention::Params>();
  Attention a{};
  a.heads = p.heads;
  a.kv_heads = p.kv_heads;
  a.group = p.kv_heads ? p.heads / p.kv_heads : 0;
  a.head_dim = p.head_dim;
  a.dim = padded(p.head_dim);
  a.pairs = p.rope_dim / 2;
  a.dtype = is_paged(call) ? call.states[op::attention::state_kv].dtype : DType::f32;
  return a;
}

}  // namespace
}  // namespace paged

size_t attention_shared(const Call& call) {
  const paged::Attention a = paged::heads_of(call);
  if (a.dtype == DType::f32) return paged::plain_bytes(a);
  return paged::with_state(a, [&](auto heads) { return heads.least_bytes(a); });
}

Choices attention_choices(const Device& device, const Shape& shape, const Call& call) {
  paged::Attention a = paged::heads_of(call);
  a.sequences = call.outputs[op::attention::out_out].rows;
  if (!shape.decode || a.dtype == DType::f32) return {};
  return paged::with_state(a, [&](auto heads) { return heads.choices(device, a); });
}

cudaError_t attention(const Context& context, const Call& call) {
  const paged::Attention a = paged::describe(context, call);
  if (a.dtype == DType::f32) return paged::launch_plain(context, a);
  return paged::with_state(a, [&](auto heads) {
    return context.shape.decode ? heads.decode(context, a) : heads.prompts(context, a);
  });
}

}  // namespace ingot::cuda

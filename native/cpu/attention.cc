// Attention with an online softmax (Milakov and Gimelshein, 2018; Dao et al., 2022) over blocks of 32 positions.
//
// Blocks are aligned at absolute positions and each (token, head) goes through its own in order, from the first that
// its window touches. What a token sees, and in which order it adds, thus depends on its position alone: not on the
// batch, the chunks a prompt came in, or the tokens that share a tile with it.
#include <cstring>

#include "math.h"
#include "norm.h"
#include "parallel.h"
#include "rotary.h"

namespace ingot::cpu::INGOT_ISA {
namespace {

constexpr size_t kBlock = kBlockTokens;
static_assert(kBlock == 2 * kLanes);
constexpr size_t kTileRows = 64;  // (token, head) rows that share one pass over keys and values

// Stores n values as `padded` of the given type, zeros after them.
void store_row(DType dtype, std::byte* to, const float* from, size_t n, size_t padded) {
  for (size_t i = 0; i < padded; i += kLanes) {
    const Vec v = i < n ? load_n(from + i, n - i < kLanes ? n - i : kLanes) : zero();
    if (dtype == DType::f32) store(reinterpret_cast<float*>(to) + i, v);
    else if (dtype == DType::f16) store_f16(reinterpret_cast<uint16_t*>(to) + i, v);
    else store_bf16(reinterpret_cast<uint16_t*>(to) + i, v);
  }
}

// `count` elements (a multiple of 16) as f32: where they lie, or converted into `buffer`.
const float* widen(DType dtype, const std::byte* from, size_t count, float* buffer) {
  if (dtype == DType::f32) return reinterpret_cast<const float*>(from);
  const uint16_t* half = reinterpret_cast<const uint16_t*>(from);
  if (dtype == DType::f16) {
    for (size_t i = 0; i < count; i += kLanes) store(buffer + i, load_f16(half + i));
  } else {
    for (size_t i = 0; i < count; i += kLanes) store(buffer + i, load_bf16(half + i));
  }
  return buffer;
}

// Keys and values: pages of the state, or those of this step, (kv_heads, tokens, dim) in scratch.
struct KeyValues {
  DType dtype = DType::f32;
  State state = {};
  const Step* step = nullptr;
  std::byte *keys = nullptr, *values = nullptr;
  size_t kv_heads = 0, dim = 0, tokens = 0;  // dim is padded to 16; tokens of the scratch

  size_t row_bytes() const { return byte_size(dtype, dim); }
  std::byte* page(size_t sequence, size_t block) const {
    return state.base + size_t(step->block_table[sequence * step->blocks_per_sequence + block]) * state.size;
  }
  // Rows of keys from `position` on, to the end of its block at least; values lie `value_offset()` further.
  std::byte* rows(size_t sequence, size_t position, size_t head) const {
    if (!state) return keys + (head * tokens + size_t(step->sequence_start[sequence]) + position) * row_bytes();
    return page(sequence, position / kBlock) + (head * kBlock + position % kBlock) * row_bytes();
  }
  ptrdiff_t value_offset() const { return state ? ptrdiff_t(kv_heads * kBlock * row_bytes()) : values - keys; }
};

// A run of tokens of one sequence.
struct Tile { uint32_t sequence, first, count; };

// One (token, head): the softmax so far over the blocks seen, and what it takes from the present one.
struct Row {
  float most, total;   // largest score; sum of e^(score - most)
  float scale;         // of what was accumulated before this block
  size_t begin, end;   // positions of this block that the token sees; none: the block does not exist for it
};

struct Attention {
  Attention(const Context& context, const Call& call);
  void run() const;

 private:
  const Context& context;
  const op::attention::Params& p;
  const Matrix &q, &k, &v, &out;
  const float *inv_freq, *q_norm, *k_norm;
  size_t dim, group;  // head_dim padded to 16; query heads per head of keys
  KeyValues kv;
  float* queries;     // (tokens, heads, dim), normed and turned

  // Where a token stands in its sequence, as its keys count: by position in a state, else by order in this step.
  size_t position(size_t sequence, size_t token) const {
    return kv.state ? size_t(context.step.positions[token]) : token - size_t(context.step.sequence_start[sequence]);
  }

  // Cuts every sequence's tokens into tiles; returns how many.
  size_t cut(Tile* tiles, size_t most) const {
    size_t count = 0;
    for (uint32_t s = 0; s < context.step.sequences; ++s) {
      const size_t end = size_t(context.step.sequence_start[s + 1]);
      for (size_t t = size_t(context.step.sequence_start[s]); t < end; t += most) {
        tiles[count++] = {s, uint32_t(t), uint32_t(end - t < most ? end - t : most)};
      }
    }
    return count;
  }

  // Norm and rope of one head, in place.
  void turn(float* x, const float* weight, const float* cosine, const float* sine) const {
    if (weight) rms_normalize(x, weight, x, p.head_dim, p.norm_eps, p.norm_offset);
    if (inv_freq) rotate(x, x, p.rope_dim / 2, RopeStyle(p.rope_style), cosine, sine);
  }

  // Readies the queries of a token and appends its keys and values.
  void prepare(size_t t, float* angles, float* key) const {
    const size_t pairs = p.rope_dim / 2, bytes = p.head_dim * sizeof(float);
    float *cosine = angles, *sine = angles + pairs;
    if (inv_freq) rotary_angles(context.step.positions[t], inv_freq, pairs, p.attention_factor, cosine, sine);
    for (size_t h = 0; h < p.heads; ++h) {
      float* to = queries + (t * p.heads + h) * dim;
      std::memcpy(to, q.row<float>(t) + h * p.head_dim, bytes);
      std::memset(to + p.head_dim, 0, (dim - p.head_dim) * sizeof(float));
      turn(to, q_norm, cosine, sine);
    }
    const size_t sequence = size_t(context.step.token_sequence[t]), at = position(sequence, t);
    for (size_t h = 0; h < p.kv_heads; ++h) {
      std::memcpy(key, k.row<float>(t) + h * p.head_dim, bytes);
      turn(key, k_norm, cosine, sine);
      std::byte* to = kv.rows(sequence, at, h);
      store_row(kv.dtype, to, key, p.head_dim, dim);
      store_row(kv.dtype, to + kv.value_offset(), v.row<float>(t) + h * p.head_dim, p.head_dim, dim);
    }
  }

  static size_t workspace(size_t rows, size_t dim) {  // in floats
    return 2 * kBlock * dim + rows * (dim + kBlock + sizeof(Row) / sizeof(float));
  }
  void attend(const Tile& tile, size_t head, size_t heads, float* memory) const;
};

Attention::Attention(const Context& context, const Call& call)
    : context(context), p(call.as<op::attention::Params>()), q(call.inputs[op::attention::in_q]),
      k(call.inputs[op::attention::in_k]), v(call.inputs[op::attention::in_v]),
      out(call.outputs[op::attention::out_out]),
      inv_freq(call.weights[op::attention::weight_inv_freq].as<float>()),
      q_norm(call.weights[op::attention::weight_q_norm].as<float>()),
      k_norm(call.weights[op::attention::weight_k_norm].as<float>()),
      dim(round_up(p.head_dim, kLanes)), group(p.heads / p.kv_heads) {
  const Step& step = context.step;
  kv.step = &step;
  kv.kv_heads = p.kv_heads;
  kv.dim = dim;
  if (p.causal && call.states[op::attention::state_kv]) {
    kv.state = call.states[op::attention::state_kv];
    kv.dtype = kv.state.dtype;
  } else {
    kv.tokens = step.tokens + kBlock;  // the last block of the last sequence is read whole
    kv.keys = context.scratch.take<std::byte>(p.kv_heads * kv.tokens * kv.row_bytes());
    kv.values = context.scratch.take<std::byte>(p.kv_heads * kv.tokens * kv.row_bytes());
  }
  queries = context.scratch.take<float>(step.tokens * p.heads * dim);
}

// Scores of a query against the first `count` (16 or 32) keys of a block.
void score(const float* query, const float* keys, size_t dim, size_t count, float* scores) {
  for (size_t j = 0; j < count; j += kSums) {
    Vec sums[kSums];
    for (size_t i = 0; i < kSums; ++i) sums[i] = zero();
    for (size_t d = 0; d < dim; d += kLanes) {
      const Vec x = load(query + d);
#pragma GCC unroll 16
      for (size_t i = 0; i < kSums; ++i) sums[i] = fma(x, load(keys + (j + i) * dim + d), sums[i]);
    }
    store_sums(scores + j, sums);
  }
}

// Turns the scores of a block into weights, in place; positions outside [begin, end) weigh exactly 0.
void soften(const op::attention::Params& p, Row& row, float* scores) {
  Vec s[2], most = set(-kInfinity);
  for (int i = 0; i < 2; ++i) {
    const Vec index = lane_index() + set(float(i) * kLanes);
    s[i] = load(scores + size_t(i) * kLanes) * set(p.scale);
    if (p.softcap > 0) s[i] = softcap(s[i], p.softcap);
    s[i] = if_less(index, set(float(row.end)), s[i], set(-kInfinity));
    s[i] = if_less(index, set(float(row.begin)), set(-kInfinity), s[i]);
    most = max(most, s[i]);
  }
  const float block_most = reduce_max(most), now = row.most > block_most ? row.most : block_most;
  const Vec low = exp(s[0] - set(now)), high = exp(s[1] - set(now));
  store(scores, low);
  store(scores + kLanes, high);
  row.scale = exp(set(row.most - now)).p[0][0];
  row.total = row.total * row.scale + reduce_add(low + high);
  row.most = now;
}

// sum += weights . values over the positions [begin, end)
template <int D>
inline void add_values(Vec (&sum)[D], const float* weights, const float* values, size_t dim, size_t begin, size_t end) {
  for (size_t j = begin; j < end; ++j) {
    const Vec w = set(weights[j]);
#pragma GCC unroll 8
    for (int i = 0; i < D; ++i) sum[i] = fma(w, load(values + j * dim + i * kLanes), sum[i]);
  }
}

// acc[r] = scale[r] * acc[r] + weights[r] . values over D vectors from column d, positions in order. Only values that a
// row sees are touched, because 0 times what lies elsewhere may be NaN; those that all R rows see are loaded once.
template <int R, int D>
void accumulate(const Row* rows, const float* weights, const float* values, size_t dim, size_t d, float* acc) {
  Vec sum[R][D];
  size_t begin = 0, end = kBlock;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    begin = rows[r].begin > begin ? rows[r].begin : begin;
    end = rows[r].end < end ? rows[r].end : end;
    const Vec scale = set(rows[r].begin < rows[r].end ? rows[r].scale : 1);
#pragma GCC unroll 8
    for (int i = 0; i < D; ++i) sum[r][i] = load(acc + r * dim + d + i * kLanes) * scale;
  }
  if (begin >= end) begin = end = kBlock;
  const float* column = values + d;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    add_values<D>(sum[r], weights + r * kBlock, column, dim, rows[r].begin, rows[r].end < begin ? rows[r].end : begin);
  }
  for (size_t j = begin; j < end; ++j) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec w = set(weights[r * kBlock + j]);
#pragma GCC unroll 8
      for (int i = 0; i < D; ++i) sum[r][i] = fma(w, load(column + j * dim + i * kLanes), sum[r][i]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    add_values<D>(sum[r], weights + r * kBlock, column, dim, rows[r].begin > end ? rows[r].begin : end, rows[r].end);
#pragma GCC unroll 8
    for (int i = 0; i < D; ++i) store(acc + r * dim + d + i * kLanes, sum[r][i]);
  }
}

template <int R>
void accumulate_rows(const Row* rows, const float* weights, const float* values, size_t dim, float* acc) {
  constexpr int D = 4;
  size_t d = 0;
  for (; dim - d >= D * kLanes; d += D * kLanes) accumulate<R, D>(rows, weights, values, dim, d, acc);
  for (; d < dim; d += kLanes) accumulate<R, 1>(rows, weights, values, dim, d, acc);
}

// Heads [head, head + heads), which share one head of keys, of a tile's tokens.
void Attention::attend(const Tile& tile, size_t head, size_t heads, float* memory) const {
  const size_t kv_head = head / group, count = tile.count * heads;
  float *key_buffer = memory, *value_buffer = key_buffer + kBlock * dim;
  float *acc = value_buffer + kBlock * dim, *weights = acc + count * dim;
  Row* rows = reinterpret_cast<Row*>(weights + count * kBlock);
  for (size_t r = 0; r < count; ++r) rows[r] = {-kInfinity, 0, 0, 0, 0};
  std::memset(acc, 0, count * dim * sizeof(float));

  const Step& step = context.step;
  const size_t first = position(tile.sequence, tile.first), last = first + tile.count - 1;
  const size_t length = size_t(step.sequence_start[tile.sequence + 1] - step.sequence_start[tile.sequence]);
  const auto sees_from = [&](size_t at) { return p.causal && p.window && at >= p.window ? at - p.window + 1 : 0; };
  const size_t stop = p.causal ? last + 1 : length;
  for (size_t start = sees_from(first) / kBlock * kBlock; start < stop; start += kBlock) {
    const size_t present = stop - start < kBlock ? stop - start : kBlock, scored = round_up(present, kLanes);
    const std::byte* stored = kv.rows(tile.sequence, start, kv_head);
    const float* keys = widen(kv.dtype, stored, scored * dim, key_buffer);
    const float* values = widen(kv.dtype, stored + kv.value_offset(), present * dim, value_buffer);
    for (size_t r = 0; r < count; ++r) {
      const size_t at = first + r / heads, from = sees_from(at), to = p.causal ? at + 1 : length;
      Row& row = rows[r];
      row.begin = from > start ? from - start : 0;
      row.end = to <= start ? 0 : to - start < kBlock ? to - start : kBlock;
      if (row.begin >= row.end) {
        row.begin = row.end = 0;
        continue;
      }
      float* scores = weights + r * kBlock;
      score(queries + ((tile.first + r / heads) * p.heads + head + r % heads) * dim, keys, dim, scored, scores);
      soften(p, row, scores);
    }
    constexpr int R = kParts == 1 ? 4 : 1;
    size_t r = 0;
    for (; count - r >= R; r += R) accumulate_rows<R>(rows + r, weights + r * kBlock, values, dim, acc + r * dim);
    for (; r < count; ++r) accumulate_rows<1>(rows + r, weights + r * kBlock, values, dim, acc + r * dim);
  }
  for (size_t r = 0; r < count; ++r) {
    float* to = out.row<float>(tile.first + r / heads) + (head + r % heads) * p.head_dim;
    for (size_t d = 0; d < p.head_dim; d += kLanes) {
      const size_t n = p.head_dim - d < kLanes ? p.head_dim - d : kLanes;
      store_n(to + d, load(acc + r * dim + d) / set(rows[r].total), n);
    }
  }
}

void Attention::run() const {
  const Step& step = context.step;
  const size_t threads = context.pool.threads();
  // All keys first: a token sees those that this step appends for earlier tokens of its sequence.
  float* angles = context.scratch.take<float>(step.tokens * p.rope_dim);
  float* key = context.scratch.take<float>(step.tokens * dim);
  each_row(context, step.tokens, (p.heads + 2 * p.kv_heads) * dim,
           [&](size_t t) { prepare(t, angles + t * p.rope_dim, key + t * dim); });

  // Tiles as large as still occupy every thread; then the heads of a group part, too.
  Tile* tiles = context.scratch.take<Tile>(step.tokens);
  size_t tile_tokens = group < kTileRows ? kTileRows / group : 1, tile_heads = group;
  size_t count = cut(tiles, tile_tokens);
  while (count * p.kv_heads < 2 * threads && tile_tokens > 8) count = cut(tiles, tile_tokens /= 2);
  while (count * p.kv_heads * ceil_div(group, tile_heads) < threads && tile_heads > 1) {
    tile_heads = ceil_div(tile_heads, 2);
  }

  const size_t parts = ceil_div(group, tile_heads), per_tile = p.kv_heads * parts;
  const size_t floats = workspace(tile_tokens * tile_heads, dim);
  float* memory = context.scratch.take<float>(threads * floats);
  each_claimed(context, count * per_tile, [&](size_t i, unsigned thread) {
    const size_t unit = count * per_tile - 1 - i;  // late tokens see most: they go first
    const size_t part = unit % parts, begin = part * tile_heads;
    const size_t heads = group - begin < tile_heads ? group - begin : tile_heads;
    attend(tiles[unit / per_tile], unit / parts % p.kv_heads * group + begin, heads, memory + thread * floats);
  });
}

}  // namespace

void attention(const Context& context, const Call& call) {
  if (context.step.tokens) Attention(context, call).run();
}

}  // namespace ingot::cpu::INGOT_ISA

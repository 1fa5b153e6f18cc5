// Attention over paged keys and values: appends those of this step, then gives each head of each token its soft-max
// weighted sum. Work is cut into tiles of rows and, where threads would idle, into splits by position (FlashAttention
// and Flash-Decoding: Dao et al., 2022 and 2023). Splits lie at absolute positions and are merged in order, so what a
// token sees, and in which order it adds, depends on its position alone: not on the batch, the chunks a prompt came in,
// the threads, or the tokens that share a tile with it.
#include <algorithm>
#include <atomic>
#include <new>

#include "attention_split.h"
#include "norm.h"
#include "rotary.h"

namespace ingot::cpu::INGOT_ISA::paged {
namespace {

constexpr size_t kTileRows = kHasTiles ? 32 : 36;  // that share one pass over keys and values: whole blocks of rows
constexpr size_t kLeastRows = 8;                   // below which splitting a tile gains nothing
constexpr size_t kLeastInt8Rows = 5;               // of a sequence, from which int8 is worth converting for AMX

// Rows [first, first + count) of a sequence's rows of this step, in order of token, then head of the group.
struct Tile { uint32_t sequence, first, count, split, splits; };  // splits that its rows see

// What a thread does at once: some of a tile's splits, for one head of keys.
struct Unit { uint32_t tile, split, splits; };

// Keys and values that rows read together: those of one head in one split.
struct Piece { const Tile* tile; size_t head, split; };

struct Attention {
  Attention(const Context& context, const Call& call);
  void run() const;

 private:
  const Context& context;
  const op::attention::Params& p;
  const Matrix &q, &k, &v, &out;
  const float *inv_freq, *q_norm, *k_norm;
  size_t dim, group;     // head_dim padded to 16; query heads per head of keys
  Pages pages;
  DType dtype;
  bool rounds, tiles;    // queries are rounded to bf16; AMX multiplies
  size_t query_elements;  // of a row: dim, or on tiles the next multiple of 32
  std::byte* queries;    // (kv_heads, tokens, group, query_elements) of f32, or bf16 on tiles; normed and turned

  size_t query_bytes() const { return query_elements * (tiles ? sizeof(uint16_t) : sizeof(float)); }

  // Where a token stands in its sequence, as its keys count: by position in a state, else by order in this step.
  size_t position(size_t sequence, size_t token) const {
    return pages.paged ? size_t(context.step.positions[token])
                       : token - size_t(context.step.sequence_start[sequence]);
  }
  // Positions that the token at `at` of a sequence sees: from, and up to.
  size_t sees_from(size_t at) const { return p.causal && p.window && at >= p.window ? at - p.window + 1 : 0; }
  size_t sees_to(const Tile& tile, size_t at) const {
    const int32_t* start = context.step.sequence_start + tile.sequence;
    return p.causal ? at + 1 : size_t(start[1] - start[0]);
  }
  // Of the sequence that takes most tokens in this step.
  size_t rows_of_longest() const {
    const int32_t* start = context.step.sequence_start;
    size_t rows = 0;
    for (size_t s = 0; s < context.step.sequences; ++s) rows = std::max(rows, size_t(start[s + 1] - start[s]) * group);
    return rows;
  }
  // Position of a tile's row.
  size_t row_position(const Tile& tile, size_t row) const {
    const size_t start = size_t(context.step.sequence_start[tile.sequence]);
    return position(tile.sequence, start + (tile.first + row) / group);
  }

  void turn(float* x, const float* weight, const float* cosine, const float* sine) const;
  void store_query(std::byte* to, const float* x) const;
  template <class S> void prepare(size_t t, float* memory) const;
  size_t cut(Tile* tiles, size_t most_rows) const;
  size_t units_of(const Tile* tiles, size_t count, bool by_split, Unit* units) const;
  Range seen(const Tile& tile, size_t split) const;
  template <class S> void attend(const Piece& piece, const Piece& next, float* memory, const Partial& to, OwnTiles&) const;
  void finish(const Tile& tile, size_t head, const Partial& partial) const;
  template <class S> void run_tiles() const;

  // Floats of one thread: scores, scales, a page in f32 or a split in bf16, two partial results.
  size_t workspace(size_t rows) const {
    return round_up(rows, kLanes) * kScoreStride + 2 * kSplit + kSplit / 2 * dim + 2 * Partial::floats(rows, dim);
  }
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
  pages = {call.states[op::attention::state_kv], &step, p.kv_heads, dim, false};
  pages.paged = p.causal && pages.state;
  if (!pages.paged) {
    pages.state.dtype = DType::f32;
    pages.state.size = 2 * p.kv_heads * pages.head_elements() * sizeof(float);
    const size_t count = step.tokens / Pages::kTokens + step.sequences + 1;
    pages.state.base = context.scratch.take<std::byte>(count * pages.state.size);
  }
  dtype = pages.state.dtype;
  rounds = dtype == DType::bf16 || dtype == DType::i8;
  tiles = kHasTiles && rounds && dim >= 32 && (dtype != DType::i8 || rows_of_longest() >= kLeastInt8Rows);
  query_elements = tiles ? round_up(dim, 32) : dim;
  // More than 16 rows are read in whole tiles, so past the last row.
  queries = context.scratch.take<std::byte>((step.tokens * p.heads + kLanes) * query_bytes());
}

// Norm and rope of one head, in place.
void Attention::turn(float* x, const float* weight, const float* cosine, const float* sine) const {
  if (weight) rms_normalize(x, weight, x, p.head_dim, p.norm_eps, p.norm_offset);
  if (inv_freq) rotate(x, x, p.rope_dim / 2, RopeStyle(p.rope_style), cosine, sine);
}

void Attention::store_query(std::byte* to, const float* x) const {
  for (size_t i = 0; i < dim; i += kLanes) {
    if (!tiles) {
      store(reinterpret_cast<float*>(to) + i, rounds ? round_bf16(load(x + i)) : load(x + i));
      continue;
    }
    // The last half of an odd number of vectors goes to the end of its block of 32, zeros before it.
    uint16_t* half = reinterpret_cast<uint16_t*>(to) + i;
    const bool lone = i + kLanes == dim && dim % 32;
    if (lone) store_bf16(half, zero());
    store_bf16(half + (lone ? kLanes : 0), load(x + i));
  }
}

// Readies the queries of a token and appends its keys and values. `memory` has room for its angles and two heads.
template <class S>
void Attention::prepare(size_t t, float* memory) const {
  const Step& step = context.step;
  const size_t pairs = p.rope_dim / 2, bytes = p.head_dim * sizeof(float);
  float *cosine = memory, *sine = cosine + pairs, *x = memory + round_up(p.rope_dim, kLanes);
  float *value = x + dim, *row = value + dim;
  if (inv_freq) rotary_angles(step.positions[t], inv_freq, pairs, p.attention_factor, cosine, sine);
  for (size_t d = p.head_dim; d < dim; ++d) x[d] = value[d] = 0;
  for (size_t h = 0; h < p.heads; ++h) {
    std::memcpy(x, q.row<float>(t) + h * p.head_dim, bytes);
    turn(x, q_norm, cosine, sine);
    store_query(queries + ((h / group * step.tokens + t) * group + h % group) * query_bytes(), x);
  }
  const size_t sequence = size_t(step.token_sequence[t]), at = position(sequence, t);
  for (size_t h = 0; h < p.kv_heads; ++h) {
    std::memcpy(x, k.row<float>(t) + h * p.head_dim, bytes);
    std::memcpy(value, v.row<float>(t) + h * p.head_dim, bytes);
    turn(x, k_norm, cosine, sine);
    pages.append<S>(sequence, at, h, x, value, row);
  }
}

// Cuts every sequence's rows into tiles; returns how many.
size_t Attention::cut(Tile* tiles, size_t most_rows) const {
  const int32_t* start = context.step.sequence_start;
  size_t count = 0;
  for (uint32_t s = 0; s < context.step.sequences; ++s) {
    const size_t rows = size_t(start[s + 1] - start[s]) * group;
    for (size_t r = 0; r < rows; r += most_rows) {
      Tile tile{s, uint32_t(r), uint32_t(rows - r < most_rows ? rows - r : most_rows), 0, 0};
      const size_t first = row_position(tile, 0), last = row_position(tile, tile.count - 1);
      tile.split = uint32_t(sees_from(first) / kSplit);
      tile.splits = uint32_t(ceil_div(sees_to(tile, last), kSplit)) - tile.split;
      tiles[count++] = tile;
    }
  }
  return count;
}

// Units in order of tile; their number. Without `units`, only counts.
size_t Attention::units_of(const Tile* tiles, size_t count, bool by_split, Unit* units) const {
  size_t n = 0;
  for (uint32_t i = 0; i < count; ++i) {
    const uint32_t splits = by_split ? 1 : tiles[i].splits, end = tiles[i].split + tiles[i].splits;
    for (uint32_t split = tiles[i].split; split < end; split += splits, ++n)
      if (units) units[n] = {i, split, splits};
  }
  return n;
}

// Positions of a split that the rows of a tile see, from the start of a page.
Range Attention::seen(const Tile& tile, size_t split) const {
  const size_t first = row_position(tile, 0), last = row_position(tile, tile.count - 1);
  const size_t low = sees_from(first) / Pages::kTokens * Pages::kTokens, high = sees_to(tile, last);
  return {low > split * kSplit ? low : split * kSplit, high < (split + 1) * kSplit ? high : (split + 1) * kSplit};
}

// The rows of a tile over one piece; `next`, of a tile or of none, is what this thread will probably read then.
template <class S>
void Attention::attend(const Piece& piece, const Piece& next, float* memory, const Partial& to,
                       [[maybe_unused]] OwnTiles& own_tiles) const {
  const Step& step = context.step;
  const Tile& tile = *piece.tile;
  const size_t head = piece.head;
  const auto [begin, end] = seen(tile, piece.split);
  float* scores = memory;
  float* scales = scores + round_up(tile.count, kLanes) * kScoreStride;
  float* buffer = scales + 2 * kSplit;

  SplitPages<S> split_pages{{}, {}, ceil_div(end - begin, Pages::kTokens), dim, {}};
  const size_t count = split_pages.count, present = end % Pages::kTokens;
  for (size_t i = 0; i < count; ++i) {
    const size_t page = begin / Pages::kTokens + i;
    split_pages.keys[i] = pages.keys<S>(tile.sequence, page, head);
    split_pages.values[i] = pages.values<S>(tile.sequence, page, head);
    if constexpr (S::kScaled) {
      float *key_scales = scales + i * Pages::kTokens, *value_scales = key_scales + kSplit;
      std::memcpy(key_scales, pages.key_scales(tile.sequence, page, head), Pages::kTokens * sizeof(float));
      std::memcpy(value_scales, pages.value_scales(tile.sequence, page, head), Pages::kTokens * sizeof(float));
    }
  }
  // 0 times what lies past the last position may be NaN.
  if constexpr (S::kScaled) {
    std::fill(scales + kSplit + (end - begin), scales + kSplit + count * Pages::kTokens, 0.0f);
  } else if (present) {
    auto* copy = reinterpret_cast<typename S::Element*>(buffer);
    pages.copy_present<S>(split_pages.values[count - 1], present, copy);
    split_pages.values[count - 1] = copy;
  }

  for (size_t i = 0; next.tile && i < 2; ++i) {
    const auto [from, until] = seen(*next.tile, next.split);
    const size_t page = from / Pages::kTokens + i;
    if (page * Pages::kTokens < until) split_pages.next[i] = pages.keys<S>(next.tile->sequence, page, next.head);
  }

  const size_t row = (head * step.tokens + size_t(step.sequence_start[tile.sequence])) * group + tile.first;
  const std::byte* query = queries + row * query_bytes();
  const auto weights = [&]<bool Packs>() {
    for (size_t r = 0; r < tile.count;) {
      const size_t at = row_position(tile, r), from = sees_from(at), until = sees_to(tile, at);
      const auto soften_rows = [&]<size_t R>() {
        soften<S, Packs, R>(p, {scales, scales + kSplit}, scores + r * kScoreStride, kScoreStride,
                            count * Pages::kTokens, from > begin ? from - begin : 0, until > begin ? until - begin : 0,
                            to.softmax + r);
        r += R;
      };
      const size_t same = std::min(tile.count - r, group - (tile.first + r) % group);  // of one token
      if (same >= kSoftRows) soften_rows.template operator()<kSoftRows>();
      else soften_rows.template operator()<1>();
    }
  };
#if defined(INGOT_ISA_amx)
  if constexpr (S::kRounds) {
    if (tiles) {
      own_tiles.set_rows(tile.count);
      uint16_t* wide = reinterpret_cast<uint16_t*>(buffer);
      const TilePages keys(split_pages, 0, wide);
      tile_score_pages(keys, reinterpret_cast<const uint16_t*>(query), query_elements, tile.count, scores);
      weights.template operator()<true>();
      const TilePages values(split_pages, split_pages.count, wide);
      return tile_weigh_pages(values, scores, tile.count, to.sum);
    }
  }
#endif
  score_pages(split_pages, reinterpret_cast<const float*>(query), tile.count, scores);
  weights.template operator()<false>();
  weigh_pages(split_pages, scores, tile.count, to.sum);
}

void Attention::finish(const Tile& tile, size_t head, const Partial& partial) const {
  const size_t start = size_t(context.step.sequence_start[tile.sequence]);
  for (size_t r = 0; r < tile.count; ++r) {
    const size_t row = tile.first + r;
    float* to = out.row<float>(start + row / group) + (head * group + row % group) * p.head_dim;
    const Vec total = set(partial.softmax[r].total);
    for (size_t d = 0; d < p.head_dim; d += kLanes) {
      store_n(to + d, load(partial.sum + r * dim + d) / total, p.head_dim - d < kLanes ? p.head_dim - d : kLanes);
    }
  }
}

template <class S>
void Attention::run_tiles() const {
  const Step& step = context.step;
  const size_t threads = context.pool.threads();
  // Tiles as large as still occupy every thread; then their splits part, too.
  size_t rows = kTileRows;
  Tile* tiles = context.scratch.take<Tile>(step.tokens * group);
  size_t count = cut(tiles, rows);
  while (count * p.kv_heads < 2 * threads && rows > kLeastRows) count = cut(tiles, rows /= 2);
  const bool by_split = count * p.kv_heads < 4 * threads && units_of(tiles, count, true, nullptr) > count;
  const size_t unit_count = units_of(tiles, count, by_split, nullptr);
  Unit* units = context.scratch.take<Unit>(unit_count);
  units_of(tiles, count, by_split, units);

  const size_t floats = workspace(rows), partial_floats = Partial::floats(rows, dim);
  float* memory = context.scratch.take<float>(threads * floats);
  // By split: (unit, head of keys) partial results, and how many of a (tile, head) are missing.
  float* partials = by_split ? context.scratch.take<float>(unit_count * p.kv_heads * partial_floats) : nullptr;
  auto* missing = by_split ? context.scratch.take<std::atomic<uint32_t>>(count * p.kv_heads) : nullptr;
  for (size_t i = 0; by_split && i < count * p.kv_heads; ++i) {
    new (missing + i) std::atomic<uint32_t>(tiles[i / p.kv_heads].splits);
  }

  each_claimed<OwnTiles>(context, unit_count * p.kv_heads, [&](size_t i, unsigned thread, OwnTiles& own_tiles) {
    const size_t item = unit_count * p.kv_heads - 1 - i;  // late tokens see most: they go first
    const size_t head = item % p.kv_heads, index = item / p.kv_heads;
    const Unit& unit = units[index];
    const Tile& tile = tiles[unit.tile];
    float* own = memory + thread * floats;
    const auto partial_of = [&](size_t u) {
      return Partial(partials + (u * p.kv_heads + head) * partial_floats, tile.count);
    };
    // Threads keep about the same pace.
    Piece after{};
    if (item >= threads) {
      const Unit& later = units[(item - threads) / p.kv_heads];
      after = {tiles + later.tile, (item - threads) % p.kv_heads, later.split};
    }
    if (by_split) {
      attend<S>({&tile, head, unit.split}, after, own, partial_of(index), own_tiles);
      std::atomic<uint32_t>& left = missing[unit.tile * p.kv_heads + head];
      if (left.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
      const size_t first = index - (unit.split - tile.split);
      const Partial sum = partial_of(first);
      for (size_t s = 1; s < tile.splits; ++s) sum.merge(partial_of(first + s), tile.count, dim);
      return finish(tile, head, sum);
    }
    const Partial sum(own + floats - 2 * partial_floats, tile.count), next(own + floats - partial_floats, tile.count);
    for (size_t s = 0; s < tile.splits; ++s) {
      const Piece later = s + 1 < tile.splits ? Piece{&tile, head, tile.split + s + 1} : after;
      attend<S>({&tile, head, tile.split + s}, later, own, s ? next : sum, own_tiles);
      if (s) sum.merge(next, tile.count, dim);
    }
    finish(tile, head, sum);
  });
}

void Attention::run() const {
  const Step& step = context.step;
  const size_t floats = round_up(p.rope_dim, kLanes) + 3 * dim;
  float* memory = context.scratch.take<float>(step.tokens * floats);
  with_state(dtype, [&]<class S>() {
    // All keys first: a token sees those that this step appends for earlier tokens of its sequence.
    // Each element is turned and scattered, not just copied.
    each_row(context, step.tokens, 4 * (p.heads + 2 * p.kv_heads) * dim,
             [&](size_t t) { prepare<S>(t, memory + t * floats); });
    run_tiles<S>();
  });
}

}  // namespace
}  // namespace ingot::cpu::INGOT_ISA::paged

namespace ingot::cpu::INGOT_ISA {

void attention(const Context& context, const Call& call) {
  if (context.step.tokens) paged::Attention(context, call).run();
}

}  // namespace ingot::cpu::INGOT_ISA

// Cases of attention, a naive f64 judge of them, and the steps that compute them: for every backend's test.
#pragma once
#include <algorithm>

#include "kernels.h"

namespace ingot::test {

struct Case {
  op::attention::Params params;
  DType dtype;
  bool rope, norm;
  std::vector<size_t> lengths;  // of each sequence
};

inline size_t padded(const Case& c) { return (c.params.head_dim + 15) / 16 * 16; }

// Inputs of every position of every sequence: rows in order of sequence, then position.
struct Inputs {
  Register q, k, v;
  Stored inv_freq, q_norm, k_norm;
  std::vector<size_t> first;  // row of each sequence

  static size_t total(const Case& c) {
    size_t n = 0;
    for (size_t length : c.lengths) n += length;
    return n;
  }
  Inputs(const Case& c, Random& random)
      : q(total(c), c.params.heads * c.params.head_dim), k(total(c), c.params.kv_heads * c.params.head_dim),
        v(total(c), c.params.kv_heads * c.params.head_dim), q_norm(random_row(random, c.params.head_dim)),
        k_norm(random_row(random, c.params.head_dim)) {
    q.fill(random);
    k.fill(random);
    v.fill(random);
    std::vector<float> frequencies(c.params.rope_dim / 2);
    for (size_t i = 0; i < frequencies.size(); ++i) frequencies[i] = float(std::pow(100.0, -double(i) / 8));
    inv_freq = pack(frequencies, 1, frequencies.size(), DType::f32, Layout::row);
    size_t row = 0;
    for (size_t length : c.lengths) first.push_back(row), row += length;
  }
};

// Tokens that a step takes of each sequence, in the order of the step: (sequence, count).
using Packing = std::vector<std::pair<size_t, size_t>>;

// The paged state of a run: NaN wherever nobody wrote, blocks handed out in a shuffled order.
struct Pages {
  std::vector<std::byte> bytes;
  std::vector<std::vector<int32_t>> blocks;  // of each sequence
  size_t size;

  Pages(const Case& c)
      : size(2 * c.params.kv_heads * kBlockTokens * (byte_size(c.dtype, padded(c)) + (c.dtype == DType::i8 ? 4 : 0))) {
    std::vector<int32_t> free;
    for (size_t length : c.lengths)
      for (size_t i = 0; i < length; i += kBlockTokens) free.push_back(int32_t(free.size()) + 1);
    std::shuffle(free.begin(), free.end(), std::mt19937(9));
    bytes.assign(size * (free.size() + 1), std::byte{0xff});
    for (size_t length : c.lengths) {
      blocks.emplace_back();
      for (size_t i = 0; i < length; i += kBlockTokens) blocks.back().push_back(free.back()), free.pop_back();
    }
  }
};

// Runs the steps by `execute(step, call, pages)`, on matrices of the host; returns the outputs, one row a position as in
// Inputs.
template <class F>
Register run(const Case& c, Inputs& in, const std::vector<Packing>& steps, const F& execute) {
  Pages pages(c);
  Register result(in.q.rows, in.q.width);
  std::vector<size_t> done(c.lengths.size());
  for (const Packing& packing : steps) {
    size_t tokens = 0, widest = 1;
    for (auto [s, n] : packing) tokens += n, widest = std::max(widest, pages.blocks[s].size());
    Register q(tokens, in.q.width), k(tokens, in.k.width), v(tokens, in.v.width), out(tokens, in.q.width);
    std::vector<int32_t> positions, owners, starts{0}, block_table;
    std::vector<size_t> rows;
    for (size_t i = 0; i < packing.size(); ++i) {
      const auto [s, n] = packing[i];
      for (size_t j = 0; j < n; ++j) {
        rows.push_back(in.first[s] + done[s]);
        positions.push_back(int32_t(done[s]++));
        owners.push_back(int32_t(i));
      }
      starts.push_back(int32_t(positions.size()));
      for (size_t b = 0; b < widest; ++b) block_table.push_back(b < pages.blocks[s].size() ? pages.blocks[s][b] : 0);
    }
    for (size_t t = 0; t < tokens; ++t) {
      std::memcpy(q.row(t), in.q.row(rows[t]), q.width * 4);
      std::memcpy(k.row(t), in.k.row(rows[t]), k.width * 4);
      std::memcpy(v.row(t), in.v.row(rows[t]), v.width * 4);
    }
    Step step{};
    step.tokens = uint32_t(tokens);
    step.sequences = uint32_t(packing.size());
    step.blocks_per_sequence = uint32_t(widest);
    step.positions = positions.data();
    step.token_sequence = owners.data();
    step.sequence_start = starts.data();
    step.block_table = block_table.data();
    Call call{};
    call.inputs[op::attention::in_q] = q.matrix();
    call.inputs[op::attention::in_k] = k.matrix();
    call.inputs[op::attention::in_v] = v.matrix();
    call.outputs[0] = out.matrix();
    if (c.rope) call.weights[op::attention::weight_inv_freq] = in.inv_freq.weight();
    if (c.norm) call.weights[op::attention::weight_q_norm] = in.q_norm.weight();
    if (c.norm) call.weights[op::attention::weight_k_norm] = in.k_norm.weight();
    if (c.params.causal) call.states[0] = {pages.bytes.data(), pages.size, kBlockTokens, c.dtype};
    call.params = &c.params;
    execute(step, call, pages);
    CHECK(out.guarded());
    for (size_t t = 0; t < tokens; ++t) std::memcpy(result.row(rows[t]), out.row(t), out.width * 4);
  }
  return result;
}

// A head after norm and rope.
inline std::vector<double> turned(const Case& c, const Inputs& in, const float* x, const Stored& norm, size_t position) {
  const size_t dim = c.params.head_dim, pairs = c.params.rope_dim / 2;
  std::vector<double> y(x, x + dim);
  if (c.norm) {
    double squares = 0;
    for (double e : y) squares += e * e;
    const double r = 1 / std::sqrt(squares / double(dim) + double(c.params.norm_eps));
    for (size_t i = 0; i < dim; ++i) y[i] *= r * (double(c.params.norm_offset) + double(norm.at(0, i)));
  }
  for (size_t i = 0; c.rope && i < pairs; ++i) {
    const double angle = double(float(position) * in.inv_freq.at(0, i)), factor = double(c.params.attention_factor);
    const size_t a = c.params.rope_style ? 2 * i : i, b = c.params.rope_style ? 2 * i + 1 : i + pairs;
    const double u = y[a], w = y[b];
    y[a] = (u * std::cos(angle) - w * std::sin(angle)) * factor;
    y[b] = (w * std::cos(angle) + u * std::sin(angle)) * factor;
  }
  return y;
}

inline double stored(DType dtype, double x) {
  if (dtype == DType::bf16) return double(from_bf16(to_bf16(float(x))));
  if (dtype == DType::f16) return double(from_f16(to_f16(float(x))));
  return double(float(x));
}

// A key or value as the state keeps it.
inline void store(const Case& c, std::vector<double>& x) {
  double most = 0;
  for (double e : x) most = std::max(most, std::fabs(e));
  for (double& e : x) {
    if (!c.params.causal) continue;
    e = c.dtype == DType::i8 ? std::nearbyint(e * 127 / most) * most / 127 : stored(c.dtype, e);
  }
}

// Queries rounded to f16, too, take `slack`.
inline void compare(const Case& c, const Inputs& in, const Register& actual, double slack = 1) {
  const auto& p = c.params;
  const size_t dim = p.head_dim;
  for (size_t s = 0; s < c.lengths.size(); ++s) {
    for (size_t h = 0; h < p.heads; ++h) {
      const size_t g = h / (p.heads / p.kv_heads), first = in.first[s], length = c.lengths[s];
      std::vector<std::vector<double>> keys, values;
      for (size_t j = 0; j < length; ++j) {
        keys.push_back(turned(c, in, in.k.row(first + j) + g * dim, in.k_norm, j));
        store(c, keys.back());
        values.emplace_back(in.v.row(first + j) + g * dim, in.v.row(first + j) + (g + 1) * dim);
        store(c, values.back());
      }
      for (size_t t = 0; t < length; ++t) {
        auto query = turned(c, in, in.q.row(first + t) + h * dim, in.q_norm, t);
        const bool rounds = p.causal && (c.dtype == DType::bf16 || c.dtype == DType::i8);
        for (double& e : query) e = rounds ? stored(DType::bf16, e) : e;
        const size_t end = p.causal ? t + 1 : length;
        const size_t begin = p.causal && p.window && t >= p.window ? t - p.window + 1 : 0;
        std::vector<double> weights, sum(dim);
        double total = 0;
        for (size_t j = begin; j < end; ++j) {
          double score = 0;
          for (size_t d = 0; d < dim; ++d) score += query[d] * keys[j][d];
          score *= double(p.scale);
          if (p.softcap > 0) score = double(p.softcap) * std::tanh(score / double(p.softcap));
          weights.push_back(std::exp(score));
          total += weights.back();
        }
        for (size_t j = begin; j < end; ++j)
          for (size_t d = 0; d < dim; ++d) sum[d] += weights[j - begin] / total * values[j][d];
        // a key on the edge between two stored values may fall on the other side
        const double tolerance = c.dtype == DType::f32 || !p.causal ? 1e-5
                                 : c.dtype == DType::f16            ? 2e-3
                                 : c.dtype == DType::bf16           ? 1.5e-2
                                                                    : 3e-2;
        for (size_t d = 0; d < dim; ++d) CHECK(near(actual.row(first + t)[h * dim + d], sum[d], tolerance * slack));
      }
    }
  }
}

inline constexpr size_t kLong = 200;

// Every sequence whole; in chunks; and several at once in uneven shares.
inline std::vector<std::vector<Packing>> schedules(const Case& c, Random& random) {
  std::vector<std::vector<Packing>> result;
  Packing all;
  std::vector<Packing> alone;
  for (size_t s = 0; s < c.lengths.size(); ++s) {
    all.insert(all.begin(), {s, c.lengths[s]});
    alone.push_back({{s, c.lengths[s]}});
  }
  result.push_back(alone);
  result.push_back({all});
  if (!c.params.causal) return result;
  if (*std::max_element(c.lengths.begin(), c.lengths.end()) > kLong) {
    // Long ones in large chunks, and the last tokens one at a time.
    std::vector<Packing> steps;
    for (size_t s = 0; s < c.lengths.size(); ++s) {
      const size_t whole = c.lengths[s] > 3 ? c.lengths[s] - 3 : 0;
      for (size_t t = 0; t < whole; t += 97) steps.push_back({{s, std::min(size_t(97), whole - t)}});
      for (size_t t = whole; t < c.lengths[s]; ++t) steps.push_back({{s, 1}});
    }
    result.push_back(steps);
    return result;
  }
  for (size_t chunk : {1, 7, 33}) {
    std::vector<Packing> steps;
    for (size_t s = 0; s < c.lengths.size(); ++s)
      for (size_t t = 0; t < c.lengths[s]; t += chunk) steps.push_back({{s, std::min(chunk, c.lengths[s] - t)}});
    result.push_back(steps);
  }
  std::vector<size_t> left = c.lengths;
  std::vector<Packing> mixed;
  for (bool more = true; more;) {
    Packing packing;
    for (size_t s = 0; s < left.size(); ++s) {
      const size_t n = std::min(left[s], random.below(3) ? 1 + random.below(40) : 0);
      if (n) packing.push_back({s, n});
      left[s] -= n;
    }
    if (!packing.empty()) mixed.push_back(packing);
    more = false;
    for (size_t n : left) more |= n > 0;
  }
  result.push_back(mixed);
  return result;
}

}  // namespace ingot::test

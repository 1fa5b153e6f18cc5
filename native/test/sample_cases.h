// Cases of sampling and a naive f64 judge of them: for every backend's test.
#pragma once
#include <algorithm>

#include "kernels.h"

namespace ingot::test {

struct Philox { uint32_t x[4]; };
inline Philox philox(Philox counter, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = 0xd2511f53ull * counter.x[0], b = 0xcd9e8d57ull * counter.x[2];
    const uint32_t b_high = uint32_t(b >> 32), a_high = uint32_t(a >> 32);
    counter = {{b_high ^ counter.x[1] ^ k0, uint32_t(b), a_high ^ counter.x[3] ^ k1, uint32_t(a)}};
    k0 += 0x9e3779b9;
    k1 += 0xbb67ae85;
  }
  return counter;
}

struct SampleCase {
  SampleParams params{};
  std::vector<float> logits;
  std::vector<int32_t> history;
  std::vector<BiasEntry> biases;
};

inline double ranked(double z) { return std::isnan(z) ? -INFINITY : z; }

// Ids from best to worst, ties to the lower id.
inline std::vector<int32_t> order(const std::vector<float>& z) {
  std::vector<int32_t> ids(z.size());
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = int32_t(i);
  std::stable_sort(ids.begin(), ids.end(),
                   [&](int32_t a, int32_t b) { return ranked(z[size_t(a)]) > ranked(z[size_t(b)]); });
  return ids;
}

inline std::vector<float> adjusted(const SampleCase& c) {
  std::vector<float> z = c.logits;
  for (const BiasEntry& b : c.biases) z[b.token] += b.bias;
  for (size_t id = 0; id < z.size(); ++id) {
    size_t seen = 0, outputs = 0;
    for (size_t i = 0; i < c.history.size(); ++i) {
      if (size_t(c.history[i]) != id) continue;
      ++seen;
      outputs += i >= c.params.history_prompt;
    }
    const float r = c.params.repetition_penalty;
    if (seen) z[id] = z[id] > 0 ? z[id] / r : z[id] * r;
    if (outputs) z[id] -= c.params.presence_penalty + c.params.frequency_penalty * float(outputs);
  }
  return z;
}

inline int32_t choose(const SampleCase& c) {
  const SampleParams& p = c.params;
  const std::vector<float> z = adjusted(c);
  std::vector<int32_t> ids = order(z);
  if (p.temperature == 0) return ids[0];
  const double most = ranked(z[size_t(ids[0])]);
  const auto weight = [&](int32_t id) {
    const double logit = ranked(z[size_t(id)]);
    return logit == most ? 1 : std::exp((logit - most) / double(p.temperature));
  };
  if (p.top_k || p.top_p < 1 || p.min_p > 0) {
    if (p.top_k && p.top_k < ids.size()) ids.resize(p.top_k);
    double total = 0, sum = 0;
    for (int32_t id : ids) total += weight(id);
    size_t keep = 0;
    const auto more = [&] { return sum < double(p.top_p) * total && weight(ids[keep]) >= double(p.min_p); };
    while (keep < ids.size() && (!keep || more())) {
      sum += weight(ids[keep++]);
      if (p.top_p >= 1) sum = 0;
    }
    ids.resize(keep);
  } else {
    std::sort(ids.begin(), ids.end());
  }
  const Philox x = philox({{p.position, 0, 0, 0}}, p.seed_low, p.seed_high);
  const double u = double((uint64_t(x.x[0]) << 21) ^ (x.x[1] >> 11)) * 0x1p-53;
  double total = 0, sum = 0;
  for (int32_t id : ids) total += weight(id);
  for (int32_t id : ids) {
    sum += weight(id);
    if (sum > u * total) return id;
  }
  return ids.back();
}

// Runs all cases as rows of one step by `execute(step, call, outputs, length of the history, biases)`, on matrices of the host, and compares each.
template <class F>
void run(std::vector<SampleCase> cases, size_t vocab, const F& execute) {
  const size_t rows = cases.size();
  Register logits(rows, vocab), tokens(rows, 1, DType::i32), logprobs(rows, 1 + kTopLogprobs);
  Register top(rows, kTopLogprobs, DType::i32);
  std::vector<SampleParams> sampling;
  std::vector<int32_t> history;
  std::vector<BiasEntry> biases;
  for (size_t r = 0; r < rows; ++r) {
    SampleCase& c = cases[r];
    std::copy(c.logits.begin(), c.logits.end(), logits.row(r));
    c.params.history_start = uint32_t(history.size());
    c.params.history_count = uint32_t(c.history.size());
    c.params.bias_start = uint32_t(biases.size());
    c.params.bias_count = uint32_t(c.biases.size());
    history.insert(history.end(), c.history.begin(), c.history.end());
    biases.insert(biases.end(), c.biases.begin(), c.biases.end());
    sampling.push_back(c.params);
  }
  Step step{};
  step.rows = uint32_t(rows);
  step.sampling = sampling.data();
  step.history_ids = history.data();
  step.bias_entries = biases.data();
  const op::sample::Params params{12, 1, 0, uint32_t(vocab)};
  Call call{};
  call.inputs[0] = logits.matrix();
  call.outputs[op::sample::out_tokens] = tokens.matrix();
  call.outputs[op::sample::out_logprobs] = logprobs.matrix();
  call.outputs[op::sample::out_top_tokens] = top.matrix();
  call.params = &params;
  const std::vector<float> before = logits.data;
  execute(step, call, std::vector<Register*>{&tokens, &logprobs, &top}, history.size(), biases.size());
  CHECK(std::memcmp(before.data(), logits.data.data(), before.size() * 4) == 0);

  for (size_t r = 0; r < rows; ++r) {
    const SampleCase& c = cases[r];
    const int32_t *token = tokens.matrix().row<int32_t>(r), *best = top.matrix().row<int32_t>(r);
    const bool sampled = c.params.flags & kSampleFlagSample;
    CHECK(*token == (sampled ? choose(c) : -1));
    const std::vector<int32_t> ids = order(c.logits);
    const double most = ranked(c.logits[size_t(ids[0])]);
    double sum = 0;
    for (float z : c.logits) sum += std::exp(ranked(z) - most);
    const bool reported = sampled && c.params.flags & kSampleFlagLogprobs;
    const size_t wanted = reported ? std::min(size_t(c.params.top_logprobs), vocab) : 0;
    for (size_t i = 0; i < kTopLogprobs; ++i) CHECK(best[i] == (i < wanted ? ids[i] : -1));
    if (!reported) CHECK(logprobs.row(r)[0] == 0);
    if (!reported || !std::isfinite(most)) continue;
    const auto logprob = [&](int32_t id) { return ranked(c.logits[size_t(id)]) - most - std::log(sum); };
    if (std::isfinite(logprob(*token))) CHECK(near(logprobs.row(r)[0], logprob(*token), 1e-5));
    for (size_t i = 0; i < wanted; ++i) {
      if (std::isfinite(logprob(ids[i]))) CHECK(near(logprobs.row(r)[1 + i], logprob(ids[i]), 1e-5));
    }
  }
}

inline SampleParams defaults(uint32_t position) {
  SampleParams p{};
  p.flags = kSampleFlagSample | kSampleFlagLogprobs;
  p.seed_low = 42;
  p.seed_high = 7;
  p.position = position;
  p.top_p = 1;
  p.repetition_penalty = 1;
  return p;
}

template <class F>
void test_random(const F& execute) {
  Random random(11);
  for (size_t vocab : {1, 2, 15, 17, 33, 500, 3000}) {
    for (int round = 0; round < 6; ++round) {
      std::vector<SampleCase> cases;
      for (uint32_t r = 0; r < 12; ++r) {
        SampleCase c;
        c.params = defaults(r * 31 + uint32_t(round));
        // few distinct values make ties
        for (size_t i = 0; i < vocab; ++i) {
          c.logits.push_back(float(round % 2 ? double(random.below(9)) : 4 * random.normal()));
        }
        if (random.below(8) == 0) c.params.flags = kSampleFlagLogits;
        else if (random.below(8) == 0) c.params.flags = kSampleFlagSample;
        c.params.temperature = random.below(4) ? float(0.2 + 2 * random.uniform()) : 0;
        c.params.top_k = random.below(2) ? uint32_t(1 + random.below(2 * vocab)) : 0;
        c.params.top_p = random.below(2) ? float(0.05 + 0.9 * random.uniform()) : 1;
        c.params.min_p = random.below(2) ? float(0.2 * random.uniform()) : 0;
        c.params.top_logprobs = uint32_t(random.below(kTopLogprobs + 1));
        if (random.below(2)) {
          const size_t count = random.below(60);
          for (size_t i = 0; i < count; ++i) c.history.push_back(int32_t(random.below(vocab)));
          c.params.history_prompt = uint32_t(random.below(count + 1));
          c.params.repetition_penalty = float(1 + random.uniform());
          c.params.presence_penalty = float(random.uniform());
          c.params.frequency_penalty = float(random.uniform() * 0.3);
        }
        for (size_t i = random.below(4); i-- > 0;) {
          c.biases.push_back({uint32_t(random.below(vocab)), float(random.normal())});
        }
        if (random.below(6) == 0) c.logits[random.below(vocab)] = NAN;
        if (random.below(6) == 0) c.logits[random.below(vocab)] = -INFINITY;
        cases.push_back(c);
      }
      run(cases, vocab, execute);
    }
  }
}

// Rows that no model should produce give some token and end.
template <class F>
void test_degenerate(const F& execute) {
  for (float value : {NAN, -INFINITY, 0.0f}) {
    std::vector<SampleCase> cases;
    for (uint32_t i = 0; i < 8; ++i) {
      SampleCase c;
      c.params = defaults(i);
      c.params.temperature = i & 1 ? 1.0f : 0.0f;
      c.params.top_k = i & 2 ? 3 : 0;
      c.params.top_p = i & 4 ? 0.5f : 1.0f;
      c.logits.assign(40, value);
      cases.push_back(c);
    }
    run(cases, 40, execute);
  }
  for (float top_p : {0.0f, 1e-45f}) {  // a subnormal top_p counts as 0 on a thread that flushes denormals
    SampleCase c;
    c.params = defaults(5);
    c.params.temperature = 1;
    c.params.top_p = top_p;
    c.logits = {1, 3, 2};
    run({c}, 3, execute);
  }
  SampleCase c;  // a certain token, and one that cannot be drawn
  c.params = defaults(3);
  c.params.temperature = 1;
  c.logits = {-INFINITY, 0, -INFINITY};
  run({c}, 3, execute);
}

}  // namespace ingot::test

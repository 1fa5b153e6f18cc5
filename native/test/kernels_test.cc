// Products, norms and pointwise kernels against naive f64 code, at sizes around every block edge.
#include <algorithm>
#include <string>

#include "kernels.h"

using namespace ingot;
using namespace ingot::test;

namespace {

constexpr DType kWeights[] = {DType::f32, DType::f16, DType::bf16, DType::i8, DType::i4};
constexpr Step kNoStep{};

// One product element in the order that the kernels promise (native/cpu/product.h), for float weights.
float canonical(const float* x, const Stored& w, size_t n, bool round) {
  float sum = 0;
  for (size_t k0 = 0; k0 < w.cols; k0 += 32) {
    float even = 0, odd = 0;
    for (size_t k = k0; k < std::min(k0 + 32, w.cols); ++k) {
      float& part = k % 2 ? odd : even;
      part = std::fma(round ? from_bf16(to_bf16(x[k])) : x[k], w.at(n, k), part);
    }
    sum += even + odd;
  }
  return sum;
}

// The same for int8 and int4 weights.
float canonical_integer(const float* x, const StoredFactors& w, size_t n) {
  float sum = 0;
  const size_t cols = w.weight.cols;
  for (size_t k0 = 0; k0 < cols; k0 += 256) {
    const size_t end = std::min(k0 + 256, cols);
    float most = 0;
    for (size_t k = k0; k < end; ++k) most = std::max(most, std::fabs(x[k]));
    int dot = 0;
    for (size_t k = k0; k < end && most > 0; ++k) dot += int(std::nearbyint(x[k] * (127 / most))) * int(w.unscaled(n, k));
    sum = std::fma(float(dot), w.scales.at(n, k0 / 256) * (most / 127), sum);
  }
  return sum;
}

void product_case(Random& random, size_t m, size_t n, size_t k, DType dtype) {
  const FlushDenormals flush;
  Register x(m, k), residual(m, n), out(m, n);
  x.fill(random);
  residual.fill(random);
  if (m > 1) std::fill_n(x.row(1), k, 0.0f);
  const StoredFactors w(random, n, k, dtype);
  const Stored bias = random_row(random, n);
  const bool plain = random.below(2);
  const Activation activation = plain ? Activation::none : Activation(random.below(8));
  const op::linear::Params params{32, 1, 1, uint32_t(n), uint32_t(k), uint32_t(activation), 1, 0, 0};
  Call call{};
  call.inputs[op::linear::in_x] = x.matrix();
  if (!plain) call.inputs[op::linear::in_residual] = residual.matrix();
  call.outputs[0] = out.matrix();
  w.give(call);
  if (!plain) call.weights[op::linear::weight_bias] = bias.weight();
  call.params = &params;
  run_everywhere(op::linear::id, kNoStep, call, {&out});

  for (size_t r = 0; r < m; ++r) {
    for (size_t c = 0; c < n; ++c) {
      const float sum = w.scaled() ? canonical_integer(x.row(r), w, c)
                                   : canonical(x.row(r), w.weight, c, dtype == DType::bf16);
      double exact = 0, magnitude = 0;
      for (size_t i = 0; i < k; ++i) {
        exact += double(x.row(r)[i]) * double(w.at(c, i));
        magnitude += std::fabs(double(x.row(r)[i]) * double(w.at(c, i)));
      }
      // bf16 rounds x to 2^-9; integer products round x to half a step of a block's largest
      const double tolerance = dtype == DType::bf16 ? 0x1p-8 : has_scales(dtype) ? 0.02 : 1e-5;
      CHECK(near(sum, exact, magnitude * tolerance + (has_scales(dtype) ? 0.5 : 1e-6)));
      if (plain) {
        CHECK(bits_of(out.row(r)[c]) == bits_of(sum));
      } else {
        const double expected = double(residual.row(r)[c]) + activate(activation, double(sum) + double(bias.at(0, c)));
        CHECK(near(out.row(r)[c], expected, 2e-6 * (1 + std::fabs(expected))));
      }
    }
  }
}

void logits_case(Random& random, size_t m, size_t n, size_t k, DType dtype) {
  Register x(m, k), plain(m, n), capped(m, n);
  x.fill(random);
  const StoredFactors w(random, n, k, dtype);
  const Stored bias = random_row(random, n);
  Call call{};
  call.inputs[op::logits::in_x] = x.matrix();
  w.give(call);
  call.weights[op::logits::weight_bias] = bias.weight();
  for (const auto& [out, scale, cap] : {std::tuple{&plain, 1.0f, 0.0f}, {&capped, 0.5f, 3.0f}}) {
    const op::logits::Params params{24, 1, 0, uint32_t(n), uint32_t(k), scale, cap};
    call.outputs[0] = out->matrix();
    call.params = &params;
    run_everywhere(op::logits::id, kNoStep, call, {out});
  }
  for (size_t r = 0; r < m; ++r)
    for (size_t c = 0; c < n; ++c)
      CHECK(near(capped.row(r)[c], 3 * std::tanh(0.5 * double(plain.row(r)[c]) / 3), 2e-6));
}

void test_products() {
  Random random(1);
  constexpr size_t edges[] = {1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 64, 65, 100};
  for (DType dtype : kWeights) {
    for (size_t edge : edges) product_case(random, 1, edge, random.pick(edges), dtype);
    for (size_t edge : edges) product_case(random, random.pick(edges), random.pick(edges), edge, dtype);
    for (size_t edge : edges) product_case(random, edge, random.pick(edges), random.pick(edges), dtype);
    product_case(random, 130, 17, 70, dtype);   // rows are shared out
    product_case(random, 1, 1100, 130, dtype);  // tiles are
    product_case(random, 9, 300, 257, dtype);
    product_case(random, 70, 40, 600, dtype);   // a chunk of tiles, and a block that ends within one
    product_case(random, 5, 48, 832, dtype);    // blocks of K that are tiles as they lie
    // What is taken to come from memory is read otherwise.
    for (const auto& [m, k] : {std::pair<size_t, size_t>{1, 576}, {7, 600}, {9, 576}})
      product_case(random, m, (size_t{1} << 20) / byte_size(dtype, k) + 40, k, dtype);
    // Several passes on AMX, of more rows than L2 is taken to hold.
    if (dtype == DType::bf16 || dtype == DType::i8 || dtype == DType::i4) product_case(random, 530, 24, 1100, dtype);
    for (const size_t m : {3, 9, 70})
      if (dtype != DType::i4) logits_case(random, m, 50, 33, dtype);
  }
}

// The operations that a linear with a norm and two branches replaces, one after the other.
void unfused(Register& x, const Stored& norm, Call linear, Activation activation, Register& residual, Register& out) {
  const size_t m = x.rows, n = out.width, k = x.width;
  Register normed(m, k), both(m, 2 * n), gate(m, n), up(m, n), product(m, n);
  const op::rms_norm::Params norm_params{24, 1, 0, uint32_t(k), 1, 1e-5f, 0.5f};
  Call call{};
  call.inputs[op::rms_norm::in_x] = x.matrix();
  call.outputs[0] = normed.matrix();
  call.weights[op::rms_norm::weight_weight] = norm.weight();
  call.params = &norm_params;
  run_everywhere(op::rms_norm::id, kNoStep, call, {&normed});

  const op::linear::Params plain{32, 1, 1, uint32_t(2 * n), uint32_t(k), 0, 1, 0, 0};
  linear.inputs[op::linear::in_x] = normed.matrix();
  linear.inputs[op::linear::in_residual] = {};
  linear.weights[op::linear::weight_norm] = {};
  linear.outputs[0] = both.matrix();
  linear.params = &plain;
  run_everywhere(op::linear::id, kNoStep, linear, {&both});

  for (size_t r = 0; r < m; ++r)
    for (size_t c = 0; c < n; ++c) {
      const size_t from = c / kBranchRun * 2 * kBranchRun + c % kBranchRun;
      gate.row(r)[c] = both.row(r)[from];
      up.row(r)[c] = both.row(r)[from + kBranchRun];
    }
  const op::glu::Params glu_params{16, 1, 0, uint32_t(n), uint32_t(activation)};
  call = {};
  call.inputs[op::glu::in_gate] = gate.matrix();
  call.inputs[op::glu::in_up] = up.matrix();
  call.outputs[0] = product.matrix();
  call.params = &glu_params;
  run_everywhere(op::glu::id, kNoStep, call, {&product});

  const op::residual::Params residual_params{16, 1, 0, uint32_t(n), 1};
  call = {};
  call.inputs[op::residual::in_x] = residual.matrix();
  call.inputs[op::residual::in_y] = product.matrix();
  call.outputs[0] = out.matrix();
  call.params = &residual_params;
  run_everywhere(op::residual::id, kNoStep, call, {&out});
}

void fused_case(Random& random, size_t m, size_t n, size_t k, DType dtype) {
  Register x(m, k), residual(m, n), expected(m, n), out(m, n);
  x.fill(random, 3);
  residual.fill(random);
  const StoredFactors w(random, 2 * n, k, dtype);
  const Stored bias = random_row(random, 2 * n), norm = random_row(random, k);
  const auto activation = Activation(random.below(8));
  const op::linear::Params params{32, 1, 1, uint32_t(n), uint32_t(k), uint32_t(activation), 2, 1e-5f, 0.5f};
  Call call{};
  call.inputs[op::linear::in_x] = x.matrix();
  call.inputs[op::linear::in_residual] = residual.matrix();
  call.outputs[0] = out.matrix();
  w.give(call);
  call.weights[op::linear::weight_bias] = bias.weight();
  call.weights[op::linear::weight_norm] = norm.weight();
  call.params = &params;
  run_everywhere(op::linear::id, kNoStep, call, {&out});
  unfused(x, norm, call, activation, residual, expected);
  CHECK(std::memcmp(out.data.data(), expected.data.data(), out.data.size() * 4) == 0);
}

// A linear that normalises and multiplies its branches has the bits of the operations one by one.
void test_fusions() {
  Random random(7);
  for (DType dtype : kWeights) {
    for (size_t m : {1, 2, 3, 4, 5, 8, 9, 17, 33}) {
      const size_t n = kBranchRun * (1 + random.below(5));
      fused_case(random, m, n, 1 + random.below(130), dtype);
    }
    fused_case(random, 130, 16, 70, dtype);   // rows are shared out
    fused_case(random, 1, 1104, 130, dtype);  // tiles are
    fused_case(random, 9, 304, 257, dtype);
  }
}

// Two linears, the second of which alone reads what the first leaves: on AMX its bits are those that it has elsewhere.
// `tiles`: whether that is left as tiles.
void handed_on_case(Random& random, size_t m, size_t between, DType dtype, uint32_t branches, bool tiles) {
  const size_t n = 40, k = 70;
  Register x(m, k), residual(m, n), expected(m, n), out(m, n);
  x.fill(random);
  residual.fill(random);
  std::vector<float> rows(m * between);  // of the first, as an arena has them
  const StoredFactors first(random, branches * between, k, dtype), second(random, n, between, dtype);
  const op::linear::Params writes{32, 1, 1, uint32_t(between), uint32_t(k), uint32_t(Activation::silu), branches, 0, 0};
  const op::linear::Params reads{32, 1, 1, uint32_t(n), uint32_t(between), 0, 1, 0, 0};
  Call writer{}, reader{};
  writer.inputs[op::linear::in_x] = x.matrix();
  writer.outputs[0] = reader.inputs[op::linear::in_x] = {reinterpret_cast<std::byte*>(rows.data()), between * 4,
                                                         uint32_t(m), uint32_t(between), DType::f32};
  reader.inputs[op::linear::in_residual] = residual.matrix();
  first.give(writer);
  second.give(reader);
  writer.params = &writes;
  reader.params = &reads;
  const auto run = [&](const cpu::InstructionSet& set, unsigned threads, Register& to, bool traced) {
    reader.outputs[0] = to.matrix();
    run_on(*set.table, threads, op::linear::id, kNoStep, writer, traced);
    const std::vector<float> left = rows;
    run_on(*set.table, threads, op::linear::id, kNoStep, reader, traced);
    return left;
  };
  const auto& portable = *std::ranges::find(tested_sets(), std::string("portable"), &cpu::InstructionSet::name);
  const std::vector<float> declared = run(portable, 2, expected, false);
  const auto as_declared = [&](const std::vector<float>& left) {
    return std::memcmp(left.data(), declared.data(), left.size() * 4) == 0;
  };
  writer.reader = &reader, reader.writer = &writer;
  for (const cpu::InstructionSet& set : tested_sets()) {
    if (!set.table || std::strncmp(set.name, "amx", 3)) continue;
    for (const unsigned threads : {1, 3}) {
      CHECK(as_declared(run(set, threads, out, false)) == !tiles);
      CHECK(std::memcmp(out.data.data(), expected.data.data(), out.data.size() * 4) == 0);
    }
    CHECK(as_declared(run(set, 2, out, true)));  // traced
  }
}

void test_handing_on() {
  Random random(8);
  for (DType dtype : {DType::bf16, DType::i8, DType::i4}) {
    for (const uint32_t branches : {1, 2}) {
      handed_on_case(random, 70, 320, dtype, branches, true);   // a block that is not full
      handed_on_case(random, 64, 384, dtype, branches, false);  // few rows
      handed_on_case(random, 70, 48, dtype, branches, false);   // not whole steps
      handed_on_case(random, 70, 64, dtype, branches, false);   // padding takes more than the register has
    }
    handed_on_case(random, 65, 1088, dtype, 2, true);  // pieces of steps end within a panel
  }
  for (DType dtype : {DType::bf16, DType::i8}) handed_on_case(random, 530, 320, dtype, 2, true);  // passes of rows
  handed_on_case(random, 70, 384, DType::f32, 2, false);
}

// A result for a row does not depend on the rows beside it.
void test_batch_invariance() {
  Random random(2);
  for (DType dtype : kWeights) {
    const size_t m = 41, n = 90, k = 100;
    Register x(m, k), together(m, n), alone(1, n);
    x.fill(random);
    const StoredFactors w(random, n, k, dtype);
    const op::linear::Params params{32, 1, 1, uint32_t(n), uint32_t(k), 0, 1, 0, 0};
    Call call{};
    call.inputs[0] = x.matrix();
    call.outputs[0] = together.matrix();
    w.give(call);
    call.params = &params;
    run_everywhere(op::linear::id, kNoStep, call, {&together});
    for (size_t r = 0; r < m; ++r) {
      call.inputs[0] = {reinterpret_cast<std::byte*>(x.row(r)), 0, 1, uint32_t(k), DType::f32};
      call.outputs[0] = alone.matrix();
      run_everywhere(op::linear::id, kNoStep, call, {&alone});
      CHECK(std::memcmp(alone.row(0), together.row(r), n * 4) == 0);
    }
  }
}

void test_pointwise() {
  Random random(3);
  for (size_t width : {1, 15, 16, 17, 33, 300, 5000}) {
    for (size_t rows : {1, 3, 9}) {
      Register x(rows, width), y(rows, width), out(rows, width);
      x.fill(random, 4);
      y.fill(random);
      for (size_t c = 0; c < width; ++c) x.row(0)[c] = float(int(c % 401) - 200) * 0.1f;
      Call call{};
      call.inputs[0] = x.matrix();
      call.inputs[1] = y.matrix();
      call.outputs[0] = out.matrix();
      const auto compare = [&](auto expected, double tolerance) {
        for (size_t r = 0; r < rows; ++r)
          for (size_t c = 0; c < width; ++c) {
            const double e = expected(double(x.row(r)[c]), double(y.row(r)[c]));
            CHECK(near(out.row(r)[c], e, tolerance * std::fabs(e) + 1e-35));
          }
      };
      for (uint32_t a = 0; a < 8; ++a) {
        // the tail of gelu goes as e^(-x^2 / 2): its exponent is rounded
        const double tolerance = a == 2 || a == 3 ? 4e-5 : 5e-7;
        const op::glu::Params glu{16, 1, 0, uint32_t(width), a};
        call.params = &glu;
        run_everywhere(op::glu::id, kNoStep, call, {&out});
        compare([&](double u, double v) { return activate(Activation(a), u) * v; }, tolerance);
        const op::activation::Params activation{16, 1, 0, uint32_t(width), a};
        call.params = &activation;
        run_everywhere(op::activation::id, kNoStep, call, {&out});
        compare([&](double u, double) { return activate(Activation(a), u); }, tolerance);
      }
      const op::residual::Params residual{16, 1, 0, uint32_t(width), 0.25f};
      call.params = &residual;
      run_everywhere(op::residual::id, kNoStep, call, {&out});
      compare([](double u, double v) { return double(float(u + 0.25 * v)); }, 1e-5);
      const op::multiply::Params multiply{12, 1, 0, uint32_t(width)};
      call.params = &multiply;
      run_everywhere(op::multiply::id, kNoStep, call, {&out});
      compare([](double u, double v) { return u * v; }, 1e-7);
    }
  }
}

void test_rms_norm() {
  Random random(4);
  for (size_t width : {1, 15, 16, 17, 100, 2048}) {
    for (size_t count : {1, 3}) {
      Register x(5, width * count), out(5, width * count);
      x.fill(random, 3);
      const Stored weight = random_row(random, width);
      const op::rms_norm::Params params{24, 1, 0, uint32_t(width), uint32_t(count), 1e-5f, 1};
      Call call{};
      call.inputs[0] = x.matrix();
      call.outputs[0] = out.matrix();
      call.weights[0] = weight.weight();
      call.params = &params;
      run_everywhere(op::rms_norm::id, kNoStep, call, {&out});
      for (size_t r = 0; r < 5; ++r)
        for (size_t g = 0; g < count; ++g) {
          double squares = 0;
          for (size_t c = 0; c < width; ++c) squares += std::pow(double(x.row(r)[g * width + c]), 2);
          for (size_t c = 0; c < width; ++c) {
            const double e = double(x.row(r)[g * width + c]) / std::sqrt(squares / double(width) + 1e-5) *
                             (1 + double(weight.at(0, c)));
            CHECK(near(out.row(r)[g * width + c], e, 1e-6 * (1 + std::fabs(e))));
          }
        }
    }
  }
}

void test_rope() {
  Random random(5);
  const std::vector<int32_t> positions = {0, 1, 7, 1000, 131071};
  Step step{};
  step.tokens = 5;
  step.positions = positions.data();
  for (uint32_t head_dim : {2, 16, 34, 64}) {
    for (uint32_t dim : {head_dim, head_dim / 2 / 2 * 2}) {
      for (uint32_t style : {0, 1}) {
        const size_t pairs = dim / 2;
        Register x(5, 3 * head_dim), out(5, 3 * head_dim);
        x.fill(random);
        std::vector<float> frequencies(pairs);
        for (size_t i = 0; i < pairs; ++i) frequencies[i] = float(std::pow(10000.0, -double(i) / double(pairs)));
        const Stored inv_freq = pack(frequencies, 1, pairs, DType::f32, Layout::row);
        const op::rope::Params params{28, 1, 0, 3, head_dim, dim, style, 1.25f};
        Call call{};
        call.inputs[0] = x.matrix();
        call.outputs[0] = out.matrix();
        call.weights[0] = inv_freq.weight();
        call.params = &params;
        run_everywhere(op::rope::id, step, call, {&out});
        for (size_t t = 0; t < 5; ++t)
          for (size_t h = 0; h < 3; ++h) {
            const float *from = x.row(t) + h * head_dim, *to = out.row(t) + h * head_dim;
            for (size_t i = 0; i < pairs; ++i) {
              const double angle = double(float(positions[t]) * frequencies[i]);
              const double c = std::cos(angle) * 1.25, s = std::sin(angle) * 1.25;
              const size_t a = style ? 2 * i : i, b = style ? 2 * i + 1 : i + pairs;
              CHECK(near(to[a], double(from[a]) * c - double(from[b]) * s, 1e-6));
              CHECK(near(to[b], double(from[b]) * c + double(from[a]) * s, 1e-6));
            }
            for (size_t i = dim; i < head_dim; ++i) CHECK(to[i] == from[i]);
          }
      }
    }
  }
}

void test_tokens() {
  Random random(6);
  const std::vector<int32_t> ids = {0, 36, 16, 15, 3, 3, 20}, positions = {0, 1, 2, 0, 1, 2, 3};
  const std::vector<int32_t> starts = {0, 3, 7}, rows = {6, 0, 2};
  Step step{};
  step.tokens = 7;
  step.sequences = 2;
  step.rows = 3;
  step.token_ids = ids.data();
  step.positions = positions.data();
  step.sequence_start = starts.data();
  step.row_token = rows.data();
  for (uint32_t width : {1, 17, 32, 70, 300}) {
    for (DType dtype : kWeights) {
      if (dtype == DType::i4) continue;
      Register out(7, width);
      const StoredFactors table(random, 37, width, dtype);
      const Stored learned = random_weight(random, 6, width, DType::f32, Layout::row);
      const Stored types = random_weight(random, 2, width, DType::f32, Layout::row);
      const op::embed::Params params{32, 1, 0, 37, width, 2.5f, 6, 2, 2};
      Call call{};
      call.outputs[0] = out.matrix();
      call.weights[op::embed::weight_table] = table.weight.weight();
      if (table.scaled()) call.weights[op::embed::weight_scales] = table.scales.weight();
      call.weights[op::embed::weight_positions] = learned.weight();
      call.weights[op::embed::weight_types] = types.weight();
      call.params = &params;
      run_everywhere(op::embed::id, step, call, {&out});
      for (size_t t = 0; t < 7; ++t)
        for (size_t c = 0; c < width; ++c) {
          const size_t id = size_t(ids[t]);
          const float value = table.at(id, c) * 2.5f;
          CHECK(out.row(t)[c] == value + learned.at(size_t(positions[t]) + 2, c) + types.at(0, c));
        }
    }
    Register x(7, width), gathered(3, width), pooled(2, width);
    x.fill(random);
    Call call{};
    call.inputs[0] = x.matrix();
    call.outputs[0] = gathered.matrix();
    const op::gather_rows::Params gather{12, 1, 0, width};
    call.params = &gather;
    run_everywhere(op::gather_rows::id, step, call, {&gathered});
    for (size_t r = 0; r < 3; ++r) CHECK(std::memcmp(gathered.row(r), x.row(size_t(rows[r])), width * 4) == 0);
    call.outputs[0] = pooled.matrix();
    for (uint32_t mode = 0; mode < 3; ++mode) {
      for (uint32_t normalize : {0, 1}) {
        const op::pool::Params params{20, 1, 0, width, mode, normalize};
        call.params = &params;
        run_everywhere(op::pool::id, step, call, {&pooled});
        for (size_t s = 0; s < 2; ++s) {
          const size_t begin = size_t(starts[s]), end = size_t(starts[s + 1]);
          std::vector<double> e(width);
          double squares = 0;
          for (size_t c = 0; c < width; ++c) {
            for (size_t t = begin; t < end; ++t) e[c] += double(x.row(t)[c]) / double(end - begin);
            if (mode) e[c] = double(x.row(mode == 1 ? begin : end - 1)[c]);
            squares += e[c] * e[c];
          }
          for (size_t c = 0; c < width; ++c) {
            CHECK(near(pooled.row(s)[c], normalize ? e[c] / std::sqrt(squares) : e[c], 1e-6 * (1 + std::fabs(e[c]))));
          }
        }
      }
    }
  }
}

}  // namespace

int main() {
  for (const cpu::InstructionSet& set : tested_sets()) {
    std::printf("%s: %s\n", set.name, set.table ? "tested" : set.missing);
    CHECK(!set.table || std::strcmp(set.table->isa, set.name) == 0);
  }
  CHECK(cpu::cpu_info().physical_cores >= 1);
  test_products();
  test_fusions();
  test_handing_on();
  test_batch_invariance();
  test_pointwise();
  test_rms_norm();
  test_rope();
  test_tokens();
}

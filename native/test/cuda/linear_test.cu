// linear and logits against sums in float64 of the same rounded factors, and bits across numbers of rows.
// `linear_test [dtype]`: of weights of all dtypes, or of one. `linear_test --bench [dtypes] [rows...]`: time and share of
// the read bandwidth on shapes of real models; of one kernel, whatever the rules take, with $CHOICE.
#include <cuda_fp8.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>

#include "../../cuda/cublaslt.h"
#include "../../cuda/repack.h"
#include "harness.h"

namespace ingot::cuda {
cudaError_t linear(const Context&, const Call&);
size_t linear_workspace(const Device&, const Call&);
size_t linear_choice_workspace(const Call&, Choice);
Choices linear_choices(const Device&, const Shape&, const Call&);
cudaError_t logits(const Context&, const Call&);
size_t logits_workspace(const Device&, const Call&);
Choices logits_choices(const Device&, const Shape&, const Call&);
}  // namespace ingot::cuda

namespace ingot::cuda::test {
namespace {

int failures = 0;
double worst_e4m3 = 0;  // error of cases of e4m3 operands

// $CHOICE, which benchmarks time instead of what the rules take.
Choice choice() {
  const char* name = std::getenv("CHOICE");
  for (size_t i = 0; name && i < std::size(kChoiceNames); ++i)
    if (!std::strcmp(name, kChoiceNames[i])) return Choice(i);
  return Choice::rules;
}

struct Case {
  DType dtype;
  uint32_t n, k, tokens;
  uint32_t branches = 1;
  Activation activation = Activation::none;
  bool norm = false, bias = false, residual = false, logits = false;
  DType x = DType::f32, out = DType::f32;
  float softcap = 0;
};

const char* name(DType t) {
  constexpr const char* names[] = {"", "f32", "f16", "bf16", "i8", "i32", "i4", "e4m3"};
  return names[size_t(t)];
}

double activated(Activation a, double x) {
  switch (a) {
    case Activation::silu: return x / (1 + std::exp(-x));
    case Activation::gelu: return x * 0.5 * std::erfc(-x / std::sqrt(2.0));
    case Activation::gelu_tanh: return 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
    case Activation::relu: return std::max(0.0, x);
    case Activation::sigmoid: return 1 / (1 + std::exp(-x));
    case Activation::tanh: return std::tanh(x);
    case Activation::relu2: return std::max(0.0, x) * std::max(0.0, x);
    default: return x;
  }
}

float rounded(DType t, float x) {
  if (t == DType::f16) return __half2float(__float2half(x));
  return t == DType::f32 ? x : __bfloat162float(__float2bfloat16(x));
}

float e4m3(uint8_t bits) { return __half2float(__half(__nv_cvt_fp8_to_halfraw(bits, __NV_E4M3))); }

uint32_t up(uint32_t a, uint32_t b) { return (a + b - 1) / b * b; }

template <class T>
void put(std::vector<uint8_t>& bytes, size_t index, T value) { std::memcpy(bytes.data() + index * sizeof(T), &value, sizeof(T)); }

// One instruction with random operands on the device, and the same numbers here.
struct Instruction {
  Case c;
  uint32_t rows, stride, blocks, groups;
  std::vector<double> weight;  // (rows, k)
  std::vector<float> x, bias, norm, residual;
  std::unique_ptr<Buffer> d_weight, d_scales, d_subs, d_bias, d_norm, d_x, d_residual, d_out, d_workspace;
  op::linear::Params linear_params{};
  op::logits::Params logits_params{};
  Call call{};

  Instruction(const Case& c, unsigned seed, bool numbers = true) : c(c), rows(c.branches * c.n), stride(up(c.k, 32)) {
    blocks = (c.k + 255) / 256, groups = (c.k + 31) / 32;
    std::mt19937 random(seed);
    make_weight(random, numbers);
    make_rows(random);
    bind();
  }

  void make_weight(std::mt19937& random, bool numbers) {
    std::normal_distribution<float> normal(0, 1);
    const uint32_t padded = up(rows, 16);
    const size_t count = size_t{padded} * stride;
    if (numbers) weight.resize(size_t{rows} * c.k);
    std::vector<uint8_t> bytes(count * dtype_bits(c.dtype) / 8);
    std::vector<__half> scales(size_t{padded} * blocks);
    std::vector<float> row_scales(padded);
    std::vector<int8_t> subs(size_t{padded} * groups);
    const uint32_t drawn_rows = numbers ? rows : std::min(rows, 64u);
    for (uint32_t r = 0; r < drawn_rows; ++r) {
      row_scales[r] = 1e-4f * (1 + random() % 1000 / 500.0f);
      for (uint32_t b = 0; b < blocks; ++b) scales[size_t{r} * blocks + b] = __float2half(0.001f * (1 + random() % 1000 / 500.0f));
      for (uint32_t b = 0; b < groups; ++b) subs[size_t{r} * groups + b] = int8_t(random() % 31) - 15;
      for (uint32_t i = 0; i < c.k; ++i) {
        const size_t at = size_t{r} * stride + i;
        const float scale = __half2float(scales[size_t{r} * blocks + i / 256]);
        double value = 0;
        const float drawn = numbers ? normal(random) / std::sqrt(float(c.k)) : (int(random() % 2001) - 1000) * 5e-5f;
        switch (c.dtype) {
          case DType::f32: put(bytes, at, drawn), value = drawn; break;
          case DType::f16: put(bytes, at, __float2half(drawn)), value = rounded(c.dtype, drawn); break;
          case DType::bf16: put(bytes, at, __float2bfloat16(drawn)), value = rounded(c.dtype, drawn); break;
          case DType::i8: {
            const int8_t q = int8_t(int(random() % 255) - 127);
            put(bytes, at, q), value = double(q) * scale;
            break;
          }
          case DType::e4m3: {
            uint8_t q = uint8_t(random() % 256);
            if (q % 128 == 127) --q;  // NaN
            bytes[at - i % 4 + e4m3_place(i)] = q, value = double(e4m3(q)) * row_scales[r];
            break;
          }
          default: {
            const int q = int(random() % 16) - 8;
            bytes[at / 2] |= uint8_t((q & 15) << (at % 2 * 4));
            value = double(q) * subs[size_t{r} * groups + i / 32] * scale;
          }
        }
        if (numbers) weight[size_t{r} * c.k + i] = value;
      }
    }
    const auto repeat = [&](auto& v) {  // of a benchmark, the same few rows again and again
      const size_t period = v.size() / padded * drawn_rows;
      for (size_t i = period; i < v.size(); i += period) std::copy_n(v.begin(), std::min(period, v.size() - i), v.begin() + i);
    };
    if (!numbers) repeat(bytes), repeat(scales), repeat(subs), repeat(row_scales);
    d_weight = std::make_unique<Buffer>(bytes);
    if (c.dtype == DType::i8 || c.dtype == DType::i4) d_scales = std::make_unique<Buffer>(scales);
    if (c.dtype == DType::e4m3) d_scales = std::make_unique<Buffer>(row_scales);
    if (c.dtype == DType::i4) d_subs = std::make_unique<Buffer>(subs);
  }

  void make_rows(std::mt19937& random) {
    std::normal_distribution<float> normal(0, 1);
    const auto draw = [&](std::vector<float>& to, size_t count, float scale) {
      to.resize(count);
      for (float& v : to) v = normal(random) * scale;
    };
    draw(x, size_t{c.tokens} * c.k, c.norm ? 30000 : 1);  // a norm takes any size
    if (c.bias) draw(bias, rows, 1), d_bias = std::make_unique<Buffer>(bias);
    if (c.norm) draw(norm, c.k, 1), d_norm = std::make_unique<Buffer>(norm);
    if (c.residual) draw(residual, size_t{c.tokens} * c.n, 1), d_residual = std::make_unique<Buffer>(residual);
    std::vector<uint8_t> bytes(size_t{c.tokens} * c.k * 4);
    for (uint32_t t = 0; t < c.tokens; ++t)
      for (uint32_t i = 0; i < c.k; ++i) {
        float& v = x[size_t{t} * c.k + i];
        v = rounded(c.x, v);
        std::byte* row = reinterpret_cast<std::byte*>(bytes.data()) + size_t{t} * c.k * 4;
        const __half h = __float2half(v);
        const __nv_bfloat16 b = __float2bfloat16(v);
        if (c.x == DType::f32) std::memcpy(row + i * 4, &v, 4);
        else std::memcpy(row + i * 2, c.x == DType::f16 ? static_cast<const void*>(&h) : &b, 2);
      }
    d_x = std::make_unique<Buffer>(bytes);
    d_out = std::make_unique<Buffer>(size_t{c.tokens} * c.n * 4);
  }

  void bind() {
    const auto weight_of = [](const std::unique_ptr<Buffer>& b, uint32_t rows, uint32_t cols, DType t) {
      return Weight{b ? b->data() : nullptr, rows, cols, t, Layout::row};
    };
    linear_params = {sizeof(linear_params), 1, 1, c.n, c.k, uint32_t(c.activation), c.branches, 1e-5f, c.norm ? 0.5f : 0.0f};
    logits_params = {sizeof(logits_params), 1, 0, c.n, c.k, 0.7f, c.softcap};
    call.inputs[0] = {d_x->data(), size_t{c.k} * 4, c.tokens, c.k, c.x};
    call.outputs[0] = {d_out->data(), size_t{c.n} * 4, c.tokens, c.n, c.out};
    call.weights[0] = weight_of(d_weight, rows, c.k, c.dtype);
    const bool channel = c.dtype == DType::e4m3;
    call.weights[1] = weight_of(d_scales, rows, channel ? 1 : blocks, channel ? DType::f32 : DType::f16);
    call.weights[2] = weight_of(d_bias, 1, rows, DType::f32);
    call.params = &logits_params;
    if (c.logits) return;
    call.params = &linear_params;
    if (d_residual) call.inputs[1] = {d_residual->data(), size_t{c.n} * 4, c.tokens, c.n, DType::f32};
    call.weights[3] = weight_of(d_subs, rows, groups, DType::i8);
    call.weights[4] = weight_of(d_norm, 1, c.k, DType::f32);
  }

  void take_rows(uint32_t tokens) { call.inputs[0].rows = call.inputs[1].rows = call.outputs[0].rows = tokens; }

  cudaError_t enqueue(const Device& device, bool deterministic, cudaStream_t stream, uint32_t& launches) {
    if (!d_workspace) {
      const uint32_t now = call.inputs[0].rows;
      take_rows(c.tokens);
      d_workspace = std::make_unique<Buffer>(std::max<size_t>(256, workspace_bytes(device)));
      take_rows(now);
      d_workspace->fill(0);
    }
    const DeviceStep step{};
    const Shape shape{1024, true, deterministic};
    const Context context{step, shape, device, {d_workspace->data(), workspace_bytes(device)}, stream, &launches, choice()};
    return c.logits ? logits(context, call) : linear(context, call);
  }
  size_t workspace_bytes(const Device& device) const {
    if (c.logits) return logits_workspace(device, call);
    return std::max(linear_workspace(device, call), linear_choice_workspace(call, choice()));
  }

  Choice rule(const Device& device, bool deterministic) const {
    const Shape shape{1024, true, deterministic};
    return (c.logits ? logits_choices : linear_choices)(device, shape, call).rule;
  }

  std::vector<float> run(const Device& device, uint32_t tokens, bool deterministic) {
    uint32_t launches = 0;
    take_rows(tokens);
    d_out->fill(0xff);
    check(enqueue(device, deterministic, nullptr, launches), "launch");
    check(cudaGetLastError(), "launch");
    check(cudaDeviceSynchronize(), "run");
    std::vector<float> values(size_t{tokens} * c.n);
    const auto raw = d_out->read<uint8_t>();
    for (uint32_t t = 0; t < tokens; ++t)
      for (uint32_t i = 0; i < c.n; ++i) {
        const uint8_t* row = raw.data() + size_t{t} * c.n * 4;
        float& v = values[size_t{t} * c.n + i];
        if (c.out == DType::f32) std::memcpy(&v, row + i * 4, 4);
        else {
          uint16_t h;
          std::memcpy(&h, row + i * 2, 2);
          v = c.out == DType::f16 ? __half2float(*reinterpret_cast<__half*>(&h)) : __bfloat162float(*reinterpret_cast<__nv_bfloat16*>(&h));
        }
      }
    return values;
  }

  // What output (t, i) is, with activations rounded as the kernel rounds them: `eight`, to e4m3 or int8, as the default mode
  // has more than a few rows.
  double expected(uint32_t t, uint32_t i, bool eight) const {
    const DType operand = c.dtype == DType::f32 || c.dtype == DType::f16 ? c.dtype : DType::bf16;
    double squares = 0;
    for (uint32_t j = 0; j < c.k; ++j) squares += double(x[size_t{t} * c.k + j]) * x[size_t{t} * c.k + j];
    const double factor = c.norm ? 1 / std::sqrt(squares / c.k + 1e-5) : 1;
    std::vector<float> most(blocks);  // by block of int8, of e4m3 all in the first
    const uint32_t span = c.dtype == DType::i8 ? 256 : c.k;
    if (eight)
      for (uint32_t j = 0; j < c.k; ++j)
        most[j / span] = std::max(most[j / span], std::fabs(x[size_t{t} * c.k + j] * (c.norm ? 0.5f + norm[j] : 1)));
    const auto sum = [&](uint32_t r) {
      double s = 0;
      for (uint32_t j = 0; j < c.k; ++j) {
        float v = c.norm ? x[size_t{t} * c.k + j] * (0.5f + norm[j]) : x[size_t{t} * c.k + j];
        if (c.dtype == DType::f16 && c.norm) v *= float(factor);  // else large rows would overflow
        const float largest = most[j / span];
        if (eight && c.dtype == DType::i8) v = std::nearbyint(v * (127 / largest)) * (largest / 127);
        else if (eight) v = e4m3(__nv_cvt_float_to_fp8(v * (448 / largest), __NV_SATFINITE, __NV_E4M3)) * (largest / 448);
        else v = rounded(operand, v);
        s += double(v) * weight[size_t{r} * c.k + j];
      }
      return s * (c.dtype == DType::f16 ? 1 : factor) + (c.bias ? bias[r] : 0);
    };
    if (c.logits) {
      const double y = 0.7f * sum(i);
      return c.softcap > 0 ? c.softcap * std::tanh(y / c.softcap) : y;
    }
    const uint32_t r = c.branches == 2 ? i + i / 16 * 16 : i;
    double y = activated(c.activation, sum(r));
    if (c.branches == 2) y *= sum(r + 16);
    return y + (c.residual ? residual[size_t{t} * c.n + i] : 0);
  }
};

// The largest relative error: `eight` as above; `loose`: in the default mode, cuBLASLt keeps sums in bf16.
double allowed(const Case& c, bool eight, bool loose) {
  if (eight && c.dtype == DType::i8) return c.out == DType::f32 ? 1e-3 : 4e-3;
  if (eight) return 8e-3;
  // An f16 operand that lies between two may be rounded the other way.
  if (c.dtype == DType::f16 && c.norm && c.out == DType::f32 && !loose) return 1e-4;
  if (loose) return 8e-3;
  return c.out == DType::bf16 ? 4e-3 : c.out == DType::f16 ? 5e-4 : 2e-5;
}

void judge(const Device& device, const Case& c, bool deterministic, unsigned seed) {
  Instruction instruction(c, seed);
  const auto got = instruction.run(device, c.tokens, deterministic);
  std::mt19937 random(seed);
  const size_t all = size_t{c.tokens} * c.n, samples = std::min<size_t>(all, 4000);
  // The tile kernel may have rows rounded to e4m3 or int8; cuBLASLt has them rounded to e4m3.
  const Choice rule = instruction.rule(device, deterministic);
  const bool eight = rule == Choice::tile_rounded || (c.dtype == DType::e4m3 && rule == Choice::blas);
  double error = 0, norm = 0;
  for (size_t s = 0; s < samples; ++s) {
    const size_t at = samples == all ? s : random() % all;
    const double want = instruction.expected(uint32_t(at / c.n), uint32_t(at % c.n), eight);
    error += (got[at] - want) * (got[at] - want), norm += want * want;
  }
  for (const float v : got) if (std::isnan(v)) error = NAN;
  const double relative = std::sqrt(error / norm);
  if (eight && c.dtype == DType::e4m3) worst_e4m3 = std::max(worst_e4m3, relative);
  const bool good = relative < allowed(c, eight, !deterministic && c.tokens > 8);
  failures += !good;
  if (!good || std::getenv("VERBOSE"))
    std::printf("%s %s %s n=%u k=%u tokens=%u branches=%u norm=%d bias=%d residual=%d x=%s out=%s %s: error %.2e\n",
                good ? "ok  " : "FAIL", c.logits ? "logits" : "linear", name(c.dtype), c.n, c.k, c.tokens, c.branches,
                c.norm, c.bias, c.residual, name(c.x), name(c.out), deterministic ? "deterministic" : "default", relative);
}

void compare_bits(const Device& device, Case c, const std::vector<uint32_t>& counts) {
  c.tokens = *std::max_element(counts.begin(), counts.end());
  Instruction instruction(c, 7);
  const auto all = instruction.run(device, c.tokens, true);
  for (const uint32_t count : counts) {
    const auto some = instruction.run(device, count, true);
    size_t differ = 0;
    for (size_t i = 0; i < some.size(); ++i) differ += std::memcmp(&some[i], &all[i], 4) != 0;
    failures += differ != 0;
    if (differ) std::printf("FAIL bits %s n=%u k=%u: %zu of %zu differ between %u and %u rows\n", name(c.dtype), c.n, c.k, differ, some.size(), count, c.tokens);
  }
}

int run_tests(const Device& device, const std::string& only) {
  std::mt19937 random(1);
  unsigned seed = 0, cases = 0;
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16, DType::i8, DType::i4, DType::e4m3}) {
    if (!only.empty() && only != name(dtype)) continue;
    const DType operand = dtype == DType::f16 ? DType::f16 : DType::bf16;
    for (const uint32_t tokens : {1u, 2u, 7u, 8u, 9u, 17u, 33u, 70u, 128u, 200u})
      for (unsigned i = 0; i < 6; ++i) {
        Case c{dtype, uint32_t(1 + random() % 300), uint32_t(1 + random() % 900), tokens};
        if (i % 3 == 0) c.k = 64 * (1 + random() % 40);
        c.bias = random() % 2, c.residual = random() % 2, c.norm = random() % 2;
        c.activation = Activation(random() % 8);
        if (random() % 3 == 0) c.branches = 2, c.n = 16 * (1 + random() % 20);
        if (random() % 3 == 0 && dtype != DType::f32) c.x = operand, c.norm = false;
        if (random() % 3 == 0) c.out = operand;
        if (dtype == DType::e4m3 && i % 2) c.n = up(c.n, 16);
        if (random() % 5 == 0 && dtype != DType::i4 && dtype != DType::e4m3) {
          c.logits = true, c.branches = 1, c.norm = c.residual = false, c.activation = Activation::none;
          if (random() % 2) c.softcap = 3;
        }
        for (const bool deterministic : {false, true}) judge(device, c, deterministic, ++seed), ++cases;
      }
    for (const uint32_t tokens : {3u, 40u}) {  // rows that are operands as they lie
      Case c{dtype, 300, 768, tokens};
      c.x = operand;
      for (const bool deterministic : {false, true}) judge(device, c, deterministic, ++seed), ++cases;
    }
    for (const auto& [n, k] : {std::pair{2048u, 2048u}, {2048u, 8192u}, {4000u, 1000u}, {512u, 14336u}, {192u, 96u}, {300u, 1000u}})
      compare_bits(device, {dtype, n, k, 0, 1, Activation::silu, k < 8192, true, true}, {1, 2, 5, 8, 13, 16, 31, 64, 100, 128, 150, 260});
    compare_bits(device, {dtype, 512, 2048, 0, 2, Activation::silu, true}, {1, 3, 8, 16, 32, 64, 128, 200});
    // More tiles than a large device has multiprocessors.
    compare_bits(device, {dtype, 17000, 700, 0, 1, Activation::none, true, true, true}, {1, 16, 32, 64, 128, 200});
    compare_bits(device, {dtype, 8480, 2400, 0, 2, Activation::silu, true}, {1, 16, 128, 200});
    std::printf("%s: %u cases, %d failures so far\n", name(dtype), cases, failures);
  }
  if (!only.empty() && only != "e4m3") return failures != 0;
  for (const auto& [n, k] : {std::pair{1000u, 8192u}, {512u, 14336u}, {64u, 20000u}})  // groups of runs, rows read twice
    for (const uint32_t tokens : {16u, 100u, 128u})
      for (const DType x : {DType::f32, DType::bf16})
        judge(device, {DType::e4m3, n, k, tokens, 1, Activation::none, x == DType::f32, false, true, false, x}, false, ++seed);
  for (const uint32_t branches : {1u, 2u})  // more tiles than multiprocessors
    for (const uint32_t tokens : {16u, 32u, 64u, 128u})
      judge(device, {DType::e4m3, 17008 / branches / 16 * 16, 700, tokens, branches, Activation::silu, true}, false, ++seed);
  std::printf("e4m3: rows of e4m3 err by at most %.2e\n", worst_e4m3);
  if (!only.empty()) return failures != 0;
  for (const DType dtype : {DType::i8, DType::i4})  // more rows than a grid's second dimension
    judge(device, {dtype, 70000, 256, 16}, false, ++seed);
  return failures != 0;
}

struct Shape2 { const char* name; uint32_t n, k, branches; bool norm, residual, logits; };

// Launches of one instruction over different copies of its weight, so that none is found in L2.
struct Copies {
  Instruction instruction;
  double bytes;
  std::vector<std::unique_ptr<Buffer>> others;

  explicit Copies(const Case& c) : instruction(c, 1, false), bytes(double(c.branches) * c.n * c.k * dtype_bits(c.dtype) / 8) {
    const size_t size = size_t(bytes);
    for (unsigned i = 1; i < std::clamp(600e6 / bytes, 2.0, 24.0); ++i) {
      others.push_back(std::make_unique<Buffer>(size));
      check(cudaMemcpy(others.back()->data(), instruction.d_weight->data(), size, cudaMemcpyDeviceToDevice), "copy");
    }
  }

  // Milliseconds of a launch in a graph of many, the median of replays.
  double time(const Device& device, uint32_t tokens) {
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t replay;
    cudaEvent_t start, end;
    uint32_t launches = 0;
    const size_t copies = others.size() + 1, count = std::max<size_t>(copies, 48 / copies * copies);
    std::byte* own = instruction.d_weight->data();
    instruction.take_rows(tokens);
    check(cudaStreamCreate(&stream), "stream");
    check(instruction.enqueue(device, std::getenv("DETERMINISTIC"), stream, launches), "launch");
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    for (size_t i = 0; i < count; ++i) {
      instruction.call.weights[0].data = i % copies ? others[i % copies - 1]->data() : own;
      check(instruction.enqueue(device, std::getenv("DETERMINISTIC"), stream, launches), "launch");
    }
    instruction.call.weights[0].data = own;
    check(cudaStreamEndCapture(stream, &graph), "capture");
    check(cudaGraphInstantiate(&replay, graph, 0), "instantiate");
    cudaEventCreate(&start), cudaEventCreate(&end);
    std::vector<float> times;
    for (int i = 0; i < 7; ++i) {
      cudaEventRecord(start, stream);
      check(cudaGraphLaunch(replay, stream), "replay");
      cudaEventRecord(end, stream);
      check(cudaStreamSynchronize(stream), "replay");
      float ms;
      cudaEventElapsedTime(&ms, start, end);
      if (i >= 2) times.push_back(ms / float(count));
    }
    cudaGraphExecDestroy(replay), cudaGraphDestroy(graph), cudaStreamDestroy(stream);
    cudaEventDestroy(start), cudaEventDestroy(end);
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }
};

int run_bench(const Device& device, const std::vector<uint32_t>& counts, const std::string& only) {
  constexpr Shape2 shapes[] = {
      {"1B qkv", 3072, 2048, 1, true, false, false},       {"1B o", 2048, 2048, 1, false, true, false},
      {"1B gate+up", 8192, 2048, 2, true, false, false},   {"1B down", 2048, 8192, 1, false, true, false},
      {"1B logits", 128256, 2048, 1, false, false, true},  {"8B qkv", 6144, 4096, 1, true, false, false},
      {"8B o", 4096, 4096, 1, false, true, false},         {"8B gate+up", 14336, 4096, 2, true, false, false},
      {"8B down", 4096, 14336, 1, false, true, false},     {"8B logits", 128256, 4096, 1, false, false, true},
  };
  for (const DType dtype : {DType::bf16, DType::i8, DType::i4, DType::e4m3}) {
    if (!only.empty() && only.find(name(dtype)) == std::string::npos) continue;
    for (const auto& s : shapes) {
      if (s.logits && (dtype == DType::i4 || dtype == DType::e4m3)) continue;
      std::printf("%-4s %-11s", name(dtype), s.name);
      const uint32_t most = *std::max_element(counts.begin(), counts.end());
      Case c{dtype, s.n, s.k, s.logits ? std::min(most, 256u) : most, s.branches, s.branches == 2 ? Activation::silu : Activation::none,
             s.norm, false, s.residual, s.logits};
      if (!s.norm) c.x = DType::bf16;
      if (s.branches == 2) c.out = DType::bf16;
      Copies copies(c);
      for (const uint32_t count : counts) {
        const uint32_t tokens = std::min(count, c.tokens);
        const double ms = copies.time(device, tokens);
        std::printf(" | %4u: %7.2f us %3.0f%% %3.0fT", tokens, ms * 1e3, copies.bytes / ms / 1e6 / 4284 * 100,
                    2.0 * c.branches * c.n * c.k * tokens / ms / 1e9);
        std::fflush(stdout);
      }
      std::printf("\n");
    }
  }
  return 0;
}

}  // namespace
}  // namespace ingot::cuda::test

int main(int argc, char** argv) {
  using namespace ingot::cuda::test;
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  const auto device = this_device();
  if (argc < 2 || std::strcmp(argv[1], "--bench")) return run_tests(device, argc < 2 ? "" : argv[1]);
  std::vector<uint32_t> counts;
  std::string only;
  for (int i = 2; i < argc; ++i) std::isdigit(*argv[i]) ? counts.push_back(uint32_t(std::atoi(argv[i]))) : void(only += argv[i]);
  if (counts.empty()) counts = {1, 2, 4, 8, 16, 32};
  return run_bench(device, counts, only);
}

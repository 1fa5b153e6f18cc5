// The shared memory that calls cannot do without, against what blocks of each kind of device have, and what kernels such
// devices can choose from. Needs no device.
#include <bit>
#include <cstdio>

#include "../../cuda/kernel.h"
#include "../kernels.h"

namespace ingot::cuda {
size_t attention_shared(const Call&);
size_t linear_shared(const Call&);
Choices attention_choices(const Device&, const Shape&, const Call&);
Choices linear_choices(const Device&, const Shape&, const Call&);
}  // namespace ingot::cuda

using namespace ingot;
using namespace ingot::test;

namespace {

constexpr size_t kSm89 = 99 << 10, kSm80 = 163 << 10, kSm90 = 227 << 10;

template <class F>
auto attention(DType dtype, uint32_t head_dim, const F& of) {
  static std::byte anywhere;
  op::attention::Params p{};
  p.heads = p.kv_heads = p.causal = 1;
  p.head_dim = head_dim;
  p.rope_dim = head_dim / 2 * 2;
  Call call{};
  call.params = &p;
  call.states[0] = {&anywhere, 0, 32, dtype};
  return of(call);
}
size_t attention(DType dtype, uint32_t head_dim) { return attention(dtype, head_dim, cuda::attention_shared); }

template <class F>
auto linear(DType dtype, uint32_t n, uint32_t k, uint32_t branches, const F& of) {
  op::linear::Params p{};
  p.n = n;
  p.k = k;
  p.branches = branches;
  Call call{};
  call.params = &p;
  call.weights[0].dtype = dtype;
  return of(call);
}
size_t linear(DType dtype, uint32_t n, uint32_t k, uint32_t branches) {
  return linear(dtype, n, k, branches, cuda::linear_shared);
}

constexpr cuda::Device kDevices[] = {{0, 8, 0, 108, kSm80}, {0, 8, 9, 142, kSm89}, {0, 9, 0, 132, kSm90}};

// What the rules take can always be chosen, and in the deterministic mode nothing else than what has its bits.
void check_products(const cuda::Device& device, DType dtype, uint32_t rows, bool deterministic) {
  using enum cuda::Choice;
  const cuda::Choices found = linear(dtype, 2048, 4096, 1, [&](Call& call) {
    for (Matrix& m : call.inputs) m.rows = rows;
    return cuda::linear_choices(device, {1, true, deterministic}, call);
  });
  if (dtype == DType::f32) {
    CHECK(found.can == 0);
    return;
  }
  CHECK(found.has(found.rule));
  CHECK(found.has(tile) == (device.major == 9));
  CHECK(rows > 32 || found.has(stream));
  CHECK(rows < 1024 || !found.has(stream) || found.rule == stream);
  const bool eight = dtype == DType::e4m3 || dtype == DType::i8;
  CHECK(found.has(tile_rounded) == (device.major == 9 && eight && !deterministic));
  if (deterministic)
    for (const cuda::Choice choice : {blas, blas_2, blas_3, blas_4}) CHECK(!found.has(choice));
}

// Kernels for heads of 65 to 128 elements of 16 bits in steps that decode, where a larger one fits; on Hopper, of 64.
void check_attention(const cuda::Device& device, DType dtype, uint32_t head_dim, bool decode) {
  const cuda::Choices found = attention(dtype, head_dim, [&](Call& call) {
    call.outputs[0].rows = 1;
    return cuda::attention_choices(device, {1024, decode, true}, call);
  });
  const bool narrow = dtype == DType::bf16 || dtype == DType::f16;
  if (!decode || !narrow || head_dim > 128 || (head_dim == 64 && device.major < 9)) {
    CHECK(found.can == 0);
    return;
  }
  CHECK(found.can == 0 ? found.rule == cuda::Choice::lean : std::popcount(found.can) >= 2 && found.has(found.rule));
}

}  // namespace

int main() {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16, DType::i8})
    for (uint32_t dim = 1; dim <= 512; ++dim) {
      const size_t bytes = attention(dtype, dim);
      CHECK(bytes <= kSm90);
      if (dim <= 256) CHECK(bytes <= kSm80);
      if (dim <= 128) CHECK(bytes <= kSm89);
    }
  CHECK(attention(DType::bf16, 256) > kSm89);  // so that a gap says it before a launch does
  CHECK(attention(DType::i8, 256) <= kSm89);
  for (const DType dtype : {DType::f16, DType::bf16, DType::i8, DType::i4, DType::e4m3})
    for (const uint32_t branches : {1u, 2u}) CHECK(linear(dtype, 8192, 28672, branches) <= kSm89);
  CHECK(linear(DType::bf16, 64, 1 << 17, 1) > kSm90);
  CHECK(linear(DType::f32, 64, 1 << 17, 1) == 0);
  for (const cuda::Device& device : kDevices)
    for (const bool either : {false, true}) {
      for (const DType dtype : {DType::f32, DType::f16, DType::bf16, DType::i8, DType::i4, DType::e4m3})
        for (uint32_t rows = 1; rows <= 4096; rows *= 2) check_products(device, dtype, rows, either);
      for (const DType dtype : {DType::f32, DType::f16, DType::bf16, DType::i8})
        for (uint32_t dim = 1; dim <= 256; ++dim) check_attention(device, dtype, dim, either);
    }
  std::puts("shared memory: all calls are judged as their launches would be");
}

// The shared memory that calls cannot do without, against what blocks of each kind of device have. Needs no device.
#include <cstdio>

#include "../../cuda/kernel.h"
#include "../kernels.h"

namespace ingot::cuda {
size_t attention_shared(const Call&);
size_t linear_shared(const Call&);
}  // namespace ingot::cuda

using namespace ingot;
using namespace ingot::test;

namespace {

constexpr size_t kSm89 = 99 << 10, kSm80 = 163 << 10, kSm90 = 227 << 10;

size_t attention(DType dtype, uint32_t head_dim) {
  static std::byte anywhere;
  op::attention::Params p{};
  p.heads = p.kv_heads = p.causal = 1;
  p.head_dim = head_dim;
  p.rope_dim = head_dim / 2 * 2;
  Call call{};
  call.params = &p;
  call.states[0] = {&anywhere, 0, 32, dtype};
  return cuda::attention_shared(call);
}

size_t linear(DType dtype, uint32_t n, uint32_t k, uint32_t branches) {
  op::linear::Params p{};
  p.n = n;
  p.k = k;
  p.branches = branches;
  Call call{};
  call.params = &p;
  call.weights[0].dtype = dtype;
  return cuda::linear_shared(call);
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
  for (const DType dtype : {DType::f16, DType::bf16, DType::i8, DType::i4})
    for (const uint32_t branches : {1u, 2u}) CHECK(linear(dtype, 8192, 28672, branches) <= kSm89);
  CHECK(linear(DType::bf16, 64, 1 << 17, 1) > kSm90);
  CHECK(linear(DType::f32, 64, 1 << 17, 1) == 0);
  std::puts("shared memory: all calls are judged as their launches would be");
}

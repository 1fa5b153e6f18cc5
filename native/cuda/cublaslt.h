// cuBLASLt, loaded when first asked for: the products of many tokens in the default mode. No header or library of it is
// needed to build; where the library is absent, own kernels do its work.
#pragma once
#include "kernel.h"

namespace ingot::cuda {

constexpr size_t kCublasWorkspace = size_t{32} << 20;

// d = alpha * a^T . b + beta * c, all column-major: a is (k, m) and b (k, n) of 16-bit floats, or of
// e4m3 where k and m are multiples of 16; c and d are (m, n).
struct Gemm {
  uint32_t m, n, k;
  DType operand, result;
  const void *a, *b, *c;
  void* d;
  size_t lda, ldb, ldc, ldd;  // elements
  float alpha, beta;
  uint32_t algorithm = 0;  // of those that the library proposes; the first where it has fewer
};

// nullptr: it can be used. Otherwise a reason code: 'cublaslt_absent', 'cublaslt_too_old'.
const char* cublaslt_unavailable();
// What cublasLtGetVersion says; 0: it cannot be used.
size_t cublaslt_version();
// Workspace: kCublasWorkspace bytes, aligned to 256. Counts as one launch. Chooses an algorithm for a new shape once;
// cudaErrorNotSupported, and nothing is enqueued, where the library has none.
cudaError_t cublaslt_gemm(const Context& context, const Gemm& gemm, void* workspace);

}  // namespace ingot::cuda

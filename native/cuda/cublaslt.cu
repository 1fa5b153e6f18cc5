#include "cublaslt.h"

#include <dlfcn.h>

#include <map>
#include <mutex>
#include <tuple>

namespace ingot::cuda {
namespace {

// Of cublasLt.h and cublas_api.h, as documented; values of a stable ABI.
using Handle = void*;
constexpr int kCompute32F = 68, kTransA = 3, kTranspose = 1, kMaxWorkspace = 1;
constexpr int kAlgorithms = 4;
constexpr int kLeastAlignments[] = {5, 6, 7, 8};  // of a, b, c and d; 256 bytes unless set
constexpr int type_of(DType t) { return t == DType::f32 ? 0 : t == DType::f16 ? 2 : t == DType::e4m3 ? 28 : 14; }
struct Algorithm { uint64_t data[8]; };
struct Heuristic {
  Algorithm algorithm;
  size_t workspace;
  int status;
  float waves;
  int reserved[4];
};

struct Library {
  int (*create)(Handle*);
  int (*desc_create)(void**, int compute, int scale);
  int (*desc_set)(void*, int attribute, const void*, size_t);
  int (*layout_create)(void**, int type, uint64_t rows, uint64_t columns, int64_t leading);
  int (*preference_create)(void**);
  int (*preference_set)(void*, int attribute, const void*, size_t);
  int (*heuristic)(Handle, void*, void*, void*, void*, void*, void*, int, Heuristic*, int*);
  int (*matmul)(Handle, void*, const void*, const void*, void*, const void*, void*, const void*, const void*, void*,
                void*, void*, const Algorithm*, void*, size_t, cudaStream_t);
  int (*preference_destroy)(void*);
  size_t (*version)();
  const char* unavailable = "cublaslt_absent";

  Library() {
    void* so = nullptr;
    for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"})
      if ((so = dlopen(name, RTLD_NOW | RTLD_LOCAL))) break;
    if (!so) return;
    const auto find = [&](auto& function, const char* name) {
      return (function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(so, name))) != nullptr;
    };
    const bool all = find(create, "cublasLtCreate") && find(desc_create, "cublasLtMatmulDescCreate") &&
                     find(desc_set, "cublasLtMatmulDescSetAttribute") &&
                     find(layout_create, "cublasLtMatrixLayoutCreate") &&
                     find(preference_create, "cublasLtMatmulPreferenceCreate") &&
                     find(preference_set, "cublasLtMatmulPreferenceSetAttribute") &&
                     find(heuristic, "cublasLtMatmulAlgoGetHeuristic") && find(matmul, "cublasLtMatmul") &&
                     find(preference_destroy, "cublasLtMatmulPreferenceDestroy") && find(version, "cublasLtGetVersion");
    unavailable = all ? nullptr : "cublaslt_too_old";
  }
};

const Library& library() {
  static const Library it;
  return it;
}

// What a shape needs, made once and kept.
struct Plan {
  void *desc, *a, *b, *c, *d;
  Algorithm algorithms[kAlgorithms];
  uint32_t usable;  // of them
};

using Key = std::tuple<int, uint32_t, uint32_t, uint32_t, DType, DType, size_t, size_t, size_t, size_t, uint32_t>;

// Bytes of whose multiples all four matrices start at.
uint32_t alignment_of(const Gemm& g) {
  const size_t any = size_t(g.a) | size_t(g.b) | size_t(g.c) | size_t(g.d) | 256;
  return uint32_t(any & ~(any - 1));
}

class Plans {
 public:
  // nullptr: the library knows no algorithm for it.
  const Plan* of(int ordinal, const Gemm& gemm, Handle& handle) {
    const std::lock_guard lock(mutex_);
    Handle& own = handles_[ordinal];
    if (!own && library().create(&own)) return nullptr;
    handle = own;
    const Key key{ordinal,  gemm.m,   gemm.n,   gemm.k,   gemm.operand,      gemm.result,
                  gemm.lda, gemm.ldb, gemm.ldc, gemm.ldd, alignment_of(gemm)};
    const auto [at, fresh] = plans_.try_emplace(key);
    if (fresh) at->second = make(own, gemm);
    return at->second.usable ? &at->second : nullptr;
  }

 private:
  static Plan make(Handle handle, const Gemm& g) {
    const Library& lt = library();
    Plan p{};
    void* preference = nullptr;
    const int transpose = kTranspose;
    const size_t workspace = kCublasWorkspace;
    const int in = type_of(g.operand), out = type_of(g.result);
    if (lt.desc_create(&p.desc, kCompute32F, type_of(DType::f32)) ||
        lt.desc_set(p.desc, kTransA, &transpose, sizeof transpose) ||
        lt.layout_create(&p.a, in, g.k, g.m, int64_t(g.lda)) || lt.layout_create(&p.b, in, g.k, g.n, int64_t(g.ldb)) ||
        lt.layout_create(&p.c, out, g.m, g.n, int64_t(g.ldc)) ||
        lt.layout_create(&p.d, out, g.m, g.n, int64_t(g.ldd)) || lt.preference_create(&preference) ||
        lt.preference_set(preference, kMaxWorkspace, &workspace, sizeof workspace))
      return p;
    const uint32_t alignment = alignment_of(g);
    for (const int least : kLeastAlignments)
      if (lt.preference_set(preference, least, &alignment, sizeof alignment)) return p;
    Heuristic found[kAlgorithms]{};
    int count = 0;
    if (lt.heuristic(handle, p.desc, p.a, p.b, p.c, p.d, preference, kAlgorithms, found, &count)) count = 0;
    for (int i = 0; i < count && found[i].status == 0; ++i) p.algorithms[p.usable++] = found[i].algorithm;
    lt.preference_destroy(preference);
    return p;
  }

  std::mutex mutex_;
  std::map<int, Handle> handles_;
  std::map<Key, Plan> plans_;
};

Plans& plans() {
  static Plans& all = *new Plans;  // outlives every thread that may still be submitting
  return all;
}

}  // namespace

const char* cublaslt_unavailable() { return library().unavailable; }

size_t cublaslt_version() { return library().unavailable ? 0 : library().version(); }

cudaError_t cublaslt_gemm(const Context& context, const Gemm& g, void* workspace) {
  Handle handle = nullptr;
  const Plan* plan = plans().of(context.device.ordinal, g, handle);
  if (!plan) return cudaErrorNotSupported;
  ++*context.launches;
  const Algorithm* algorithm = &plan->algorithms[g.algorithm < plan->usable ? g.algorithm : 0];
  const int status = library().matmul(handle, plan->desc, &g.alpha, g.a, plan->a, const_cast<void*>(g.b), plan->b,
                                      const_cast<float*>(&g.beta), g.c, plan->c, g.d, plan->d, algorithm,
                                      workspace, kCublasWorkspace, context.stream);
  return status ? cudaErrorLaunchFailure : cudaSuccess;
}

}  // namespace ingot::cuda

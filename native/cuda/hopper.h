// Hopper's asynchronous matrix instructions and copies, and the barriers between them.
#pragma once
#include <cuda.h>

#include "tensor_core.h"

namespace ingot::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define INGOT_HOPPER 1
#endif

#ifdef INGOT_HOPPER
// Where a B operand lies in shared memory: cores of 8 tokens x 8 k (128 bytes, a token's 16 after another's), those of
// further tokens behind one another, those of further k `k_bytes` apart.
__device__ inline uint64_t operand(uint32_t address, uint32_t k_bytes) {
  return uint64_t(address >> 4 & 0x3fff) | uint64_t(k_bytes >> 4) << 16 | uint64_t(128 >> 4) << 32;
}
__device__ inline void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_end() {
  asm volatile("wgmma.commit_group.sync.aligned;\n\twgmma.wait_group.sync.aligned 0;" ::: "memory");
}

#define INGOT_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define INGOT_D8(i) INGOT_D4(i), INGOT_D4(i + 4)
#define INGOT_D16(i) INGOT_D8(i), INGOT_D8(i + 8)
#define INGOT_D32(i) INGOT_D16(i), INGOT_D16(i + 16)
#define INGOT_D64(i) INGOT_D32(i), INGOT_D32(i + 32)
#define INGOT_WGMMA_TYPE(type, n, r, list, a0, a1, a2, a3, b, p)                                        \
  asm volatile("{.reg .pred p; setp.ne.b32 p, " p ", 0;\n\t"                                            \
               "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" list "}, "          \
               "{" a0 "," a1 "," a2 "," a3 "}, " b ", p, 1, 1, 0;}"                                       \
               : INGOT_D##r(0)                                                                          \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(at), "r"(add))
#define INGOT_WGMMA(n, r, list, ...)                                                                    \
  template <bool kHalf>                                                                                 \
  __device__ inline void wgmma(float (&d)[r], const uint32_t (&a)[4], uint64_t at, int32_t add) {       \
    if constexpr (kHalf) INGOT_WGMMA_TYPE("f16", n, r, list, __VA_ARGS__);                              \
    else INGOT_WGMMA_TYPE("bf16", n, r, list, __VA_ARGS__);                                             \
  }
#define INGOT_8(x) "%" #x "0,%" #x "1,%" #x "2,%" #x "3,%" #x "4,%" #x "5,%" #x "6,%" #x "7"
#define INGOT_10(x) INGOT_8(x) ",%" #x "8,%" #x "9"

// d (= or, to add, +=) a . b^T of 64 weight rows over the warps of a group, 2 r tokens and 16 k, a as that of mma.h.
INGOT_WGMMA(16, 8, INGOT_8(), "%8", "%9", "%10", "%11", "%12", "%13")
INGOT_WGMMA(32, 16, INGOT_10() ",%10,%11,%12,%13,%14,%15", "%16", "%17", "%18", "%19", "%20", "%21")
INGOT_WGMMA(64, 32, INGOT_10() "," INGOT_10(1) "," INGOT_10(2) ",%30,%31", "%32", "%33", "%34", "%35", "%36", "%37")
INGOT_WGMMA(128, 64, INGOT_10() "," INGOT_10(1) "," INGOT_10(2) "," INGOT_10(3) "," INGOT_10(4) "," INGOT_10(5)
            ",%60,%61,%62,%63", "%64", "%65", "%66", "%67", "%68", "%69")
#undef INGOT_8
#undef INGOT_10

struct Barrier { uint64_t word; };

__device__ inline void init(Barrier& b, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&b)), "r"(arrivals) : "memory");
}
__device__ inline void arrive(Barrier& b) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&b)) : "memory");
}
__device__ inline void wait(Barrier& b, uint32_t parity) {
  asm volatile(
      "{.reg .pred done;\n\t"
      "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n\t"
      "@!done bra again;}" ::"r"(shared_address(&b)), "r"(parity) : "memory");
}
// Arrives; the phase does not end before copies of as many bytes have.
__device__ inline void expect(Barrier& b, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&b)), "r"(bytes)
               : "memory");
}
// Copies whole lines of 16 bytes; the barrier's phase ends when they are there.
__device__ inline void copy(void* to, const void* from, uint32_t bytes, Barrier& b) {
  const uint32_t at = shared_address(to), barrier = shared_address(&b);
  expect(b, bytes);
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(at),
               "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}
__device__ inline void prefetch(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
// Copies a box of a tensor of three dimensions to shared memory, from (x, y, z) on, x innermost; b expects its bytes.
__device__ inline void copy_box(uint32_t to, const CUtensorMap& map, uint32_t x, uint32_t y, uint32_t z, Barrier& b) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
               "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to),
               "l"(&map), "r"(x), "r"(y), "r"(z), "r"(shared_address(&b))
               : "memory");
}
__device__ inline void store_shared(uint32_t to, const uint4& v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
// Orders what this thread wrote, or saw written, before what copies and matrix instructions read.
__device__ inline void fence_async() { asm volatile("fence.proxy.async;" ::: "memory"); }

__device__ inline void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ inline void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
__device__ inline void cluster_arrive_and_wait() {
  cluster_arrive();
  cluster_wait();
}
// The address in block `rank` of the cluster of what lies at `p` in this one.
__device__ inline uint32_t address_in(uint32_t rank, const void* p) {
  uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(p)), "r"(rank));
  return address;
}
// Stores two floats in a block's shared memory; its barrier, at `barrier`, expects their eight bytes.
__device__ inline void send(uint32_t to, float x, float y, uint32_t barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(to), "f"(x),
               "f"(y), "r"(barrier)
               : "memory");
}
// Four floats of shared memory at the same place in block `rank` of the cluster.
__device__ inline void load_of(const float* p, uint32_t rank, float (&v)[4]) {
  const uint32_t address = address_in(rank, p);
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3])
               : "r"(address));
}
#endif

}  // namespace ingot::cuda

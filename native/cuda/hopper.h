// Hopper's asynchronous matrix instructions and copies, and the barriers between them.
#pragma once
#include <cuda.h>

#include "tensor_core.h"

namespace ingot::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define INGOT_HOPPER 1
#endif

struct Barrier { uint64_t word; };

#ifdef INGOT_HOPPER
// An operand of 32 bytes a token (or a weight row) in shared memory: 128 bytes of a token, of which the address says where
// these begin, then the next token's; the eight 16-byte units of a token lie where the exclusive or with the token's number
// modulo 8 says (the swizzle of 128 bytes).
__device__ inline uint64_t operand(uint32_t address) {
  return uint64_t(address >> 4 & 0x3fff) | uint64_t(1) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}
__device__ inline void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most kUnderWay of the committed groups are.
template <int kUnderWay>
__device__ inline void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kUnderWay) : "memory"); }

template <uint32_t kCount>
__device__ void settle(float (&v)[kCount]) {  // nothing is read before what stands ahead of this
#pragma unroll
  for (uint32_t i = 0; i < kCount; ++i) asm volatile("" : "+f"(v[i])::"memory");
}
template <uint32_t kCount>
__device__ void settle(int32_t (&v)[kCount]) {
#pragma unroll
  for (uint32_t i = 0; i < kCount; ++i) asm volatile("" : "+r"(v[i])::"memory");
}

#define INGOT_D4(t, i) t(d[i]), t(d[i + 1]), t(d[i + 2]), t(d[i + 3])
#define INGOT_D8(t, i) INGOT_D4(t, i), INGOT_D4(t, i + 4)
#define INGOT_D16(t, i) INGOT_D8(t, i), INGOT_D8(t, i + 8)
#define INGOT_D32(t, i) INGOT_D16(t, i), INGOT_D16(t, i + 16)
#define INGOT_D64(t, i) INGOT_D32(t, i), INGOT_D32(t, i + 32)
#define INGOT_WGMMA_TYPE(type, n, r, list, a0, a1, a2, a3, b, p)                                        \
  asm volatile("{.reg .pred p; setp.ne.b32 p, " p ", 0;\n\t"                                            \
               "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" list "}, "          \
               "{" a0 "," a1 "," a2 "," a3 "}, " b ", p, 1, 1, 0;}"                                       \
               : INGOT_D##r("+f", 0)                                                                    \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(at), "r"(add))
#define INGOT_WGMMA_BOTH(types, t, signs, n, r, list, a, b, p, ...)                                     \
  asm volatile("{.reg .pred p; setp.ne.b32 p, " p ", 0;\n\t"                                            \
               "wgmma.mma_async.sync.aligned.m64n" #n "k32." types " {" list "}, " a ", " b ", p" signs ";}" \
               : INGOT_D##r(t, 0)                                                                       \
               : "l"(weights), "l"(at), "r"(add))
#define INGOT_WGMMA(n, r, list, ...)                                                                    \
  template <bool kHalf>                                                                                 \
  __device__ inline void wgmma(float (&d)[r], const uint32_t (&a)[4], uint64_t at, int32_t add) {       \
    if constexpr (kHalf) INGOT_WGMMA_TYPE("f16", n, r, list, __VA_ARGS__);                              \
    else INGOT_WGMMA_TYPE("bf16", n, r, list, __VA_ARGS__);                                             \
  }                                                                                                     \
  __device__ inline void wgmma_e4m3(float (&d)[r], uint64_t weights, uint64_t at, int32_t add) {        \
    INGOT_WGMMA_BOTH("f32.e4m3.e4m3", "+f", ", 1, 1", n, r, list, __VA_ARGS__);                         \
  }                                                                                                     \
  __device__ inline void wgmma_i8(int32_t (&d)[r], uint64_t weights, uint64_t at, int32_t add) {        \
    INGOT_WGMMA_BOTH("s32.s8.s8", "+r", "", n, r, list, __VA_ARGS__);                                   \
  }
#define INGOT_8(x) "%" #x "0,%" #x "1,%" #x "2,%" #x "3,%" #x "4,%" #x "5,%" #x "6,%" #x "7"
#define INGOT_10(x) INGOT_8(x) ",%" #x "8,%" #x "9"

// d (= or, to add, +=) a . b^T of 64 weight rows over the warps of a group, 2 r tokens and 16 k, a as that of mma.h; or 32
// k of e4m3 or int8, weights in shared memory too.
INGOT_WGMMA(16, 8, INGOT_8(), "%8", "%9", "%10", "%11", "%12", "%13")
INGOT_WGMMA(32, 16, INGOT_10() ",%10,%11,%12,%13,%14,%15", "%16", "%17", "%18", "%19", "%20", "%21")
INGOT_WGMMA(64, 32, INGOT_10() "," INGOT_10(1) "," INGOT_10(2) ",%30,%31", "%32", "%33", "%34", "%35", "%36", "%37")
INGOT_WGMMA(128, 64, INGOT_10() "," INGOT_10(1) "," INGOT_10(2) "," INGOT_10(3) "," INGOT_10(4) "," INGOT_10(5)
            ",%60,%61,%62,%63", "%64", "%65", "%66", "%67", "%68", "%69")
#undef INGOT_8
#undef INGOT_10

// Registers of each thread of a warpgroup from here on.
template <uint32_t kRegisters>
__device__ inline void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters)); }
template <uint32_t kRegisters>
__device__ inline void leave_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters)); }

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
// The phase of a barrier ends with this many more bytes; an arrival.
__device__ inline void expect(Barrier& b, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&b)), "r"(bytes)
               : "memory");
}
// Copies a box of a map from byte `x` of row `y` on; the barrier counts the bytes of the whole box, though those outside
// the map are zeros.
__device__ inline void copy_box(void* to, const CUtensorMap& map, uint32_t x, uint32_t y, Barrier& b) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
                   "r"(shared_address(to)),
               "l"(&map), "r"(x), "r"(y), "r"(shared_address(&b))
               : "memory");
}
// Copies bytes, a multiple of 16.
__device__ inline void copy_bytes(void* to, const void* from, uint32_t bytes, Barrier& b) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(from), "r"(bytes), "r"(shared_address(&b))
               : "memory");
}
// The same as copy_box of a tensor of three dimensions, x innermost, in elements.
__device__ inline void copy_box(uint32_t to, const CUtensorMap& map, uint32_t x, uint32_t y, uint32_t z, Barrier& b) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
               "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to),
               "l"(&map), "r"(x), "r"(y), "r"(z), "r"(shared_address(&b))
               : "memory");
}
__device__ inline void store_shared(uint32_t to, const uint4& v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
// Starts reading a map.
__device__ inline void prefetch(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
// Into the L2.
__device__ inline void prefetch(const float* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// Orders what this thread wrote, or saw written, before what copies and matrix instructions read. One for both kinds of
// memory would wait for all that is under way.
__device__ inline void fence_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ inline void fence_global() { asm volatile("fence.proxy.async.global;" ::: "memory"); }
// The same for barriers that this thread made, which other blocks of the cluster arrive at too.
__device__ inline void fence_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  fence_shared();
}

// All threads of the cluster are there; says nothing about what they wrote, for a release would wait for all that is
// under way.
__device__ inline void cluster_arrive() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
__device__ inline void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// Where something of this block's shared memory lies in that of block `rank` of the cluster.
__device__ inline uint32_t address_in(const void* p, uint32_t rank) {
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
// Copies from this block to another of the cluster, whose barrier counts the bytes.
__device__ inline void copy_to(uint32_t rank, const void* to, const void* from, uint32_t bytes, const Barrier& b) {
  asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   address_in(to, rank)),
               "r"(shared_address(from)), "r"(bytes), "r"(address_in(&b, rank))
               : "memory");
}
#endif

}  // namespace ingot::cuda

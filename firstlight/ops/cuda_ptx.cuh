// SPDX-License-Identifier: Apache-2.0
// The instructions that C++ has no words for: tensor-core products, streaming loads, copies to shared memory.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace firstlight::cuda {

/// d += a b: a [16, 16] and b [16, 8] bf16, d [16, 8] f32. Of lane 4 g + t: a[0] row g, a[1] row g + 8, columns 2t, 2t
/// + 1; a[2], a[3] the same 8 columns on; b[0] rows 2t, 2t + 1 of column g, b[1] 8 rows on; d[0], d[1] row g, columns
/// 2t, 2t + 1; d[2], d[3] row g + 8.
__device__ __forceinline__ void mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                    uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// The same where rows 8 to 15 of a are zero: only d[0] and d[1] are kept.
__device__ __forceinline__ void mma_upper(float (&d)[2], uint32_t a0, uint32_t a2, uint32_t b0, uint32_t b1) {
  asm("{\n"
      ".reg .f32 none<2>;\n"
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, none0, none1}, {%2, %3, %4, %3}, {%5, %6}, {%0, "
      "%1, "
      "%7, %7};\n"
      "}"
      : "+f"(d[0]), "+f"(d[1])
      : "r"(a0), "r"(0u), "r"(a2), "r"(b0), "r"(b1), "f"(0.0f));
}

/// Copies 16 bytes into shared memory, asynchronously; zeros if not `real`.
__device__ __forceinline__ void copy_async(uint32_t to, const void* from, bool real) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(real ? 16 : 0) : "memory");
}
/// The same for what is read once: the first to leave L2.
__device__ __forceinline__ void copy_async_once(uint32_t to, const void* from, bool real, uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(to), "l"(from),
               "r"(real ? 16 : 0), "l"(policy)
               : "memory");
}
__device__ __forceinline__ uint64_t policy_read_once() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kGroups>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

/// 2^x within 2 ulp, subnormals as zero.
__device__ __forceinline__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// Four 8 x 8 matrices of 16-bit values; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(uint32_t (&x)[4], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(at)
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&x)[4], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(at)
               : "memory");
}

}  // namespace firstlight::cuda

// SPDX-License-Identifier: Apache-2.0
// Hopper's own instructions: boxes of matrices copied by tensor maps, and products of a warpgroup from shared memory.
// Products compile for 90a alone, boxes and clusters for what came later, too.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "firstlight/ops/memory_barrier_cuda.cuh"

namespace firstlight::cuda {

/// Copies the map's box at (column, row) of its matrix to shared memory, a multiple of 1,024 bytes; `done` counts the
/// whole box's bytes, what lies outside of the matrix are zeros. One thread's.
__device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap& map, int column, int row, MemoryBarrier& done,
                                         uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, "
      "%3}], [%4], %5;" ::"r"(to),
      "l"(&map), "r"(column), "r"(row), "r"(shared_address(&done)), "l"(policy)
      : "memory");
}
/// The same for what is read again.
__device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap& map, int column, int row,
                                         MemoryBarrier& done) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          to),
      "l"(&map), "r"(column), "r"(row), "r"(shared_address(&done))
      : "memory");
}

/// Where block `rank` of the cluster has what lies here at `at`.
__device__ __forceinline__ uint32_t address_at(uint32_t at, int rank) {
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
  return there;
}
__device__ __forceinline__ void store_at(uint32_t at, float x) {
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(at), "f"(x) : "memory");
}

/// A matrix of bf16 in shared memory as copy_box() leaves it: rows of 128 bytes, swizzled by 128, eight rows 1,024
/// bytes. `at`: a multiple of 1,024, and 32 more for each 16 columns.
__device__ __forceinline__ uint64_t matrix_in_shared(uint32_t at) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kEightRows = uint64_t{1024 >> 4} << 32, kUnused = 1 << 16;
  return kSwizzle128 | kEightRows | kUnused | (at & 0x3ffff) >> 4;
}

/// d += a b for 16 columns of a [64, k] and b [n, k]. Of lane 4 g + t of the warpgroup's warp w:
/// d[4 j + i] is row 16 w + g + (i < 2 ? 0 : 8) of a and row 8 j + 2 t + i % 2 of b. Asynchronous.
__device__ __forceinline__ void wgmma(float (&d)[16], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, "
      "%13, %14, %15}, %16, %17, 1, 1, 1, 0, 0;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
        "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
      : "l"(a), "l"(b));
}
__device__ __forceinline__ void wgmma(float (&d)[8], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9, 1, 1, 1, 0, 0;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
      : "l"(a), "l"(b));
}
__device__ __forceinline__ void wgmma(float (&d)[32], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, "
      "%13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, 1, 1, "
      "1, 0, 0;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
        "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),
        "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
        "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
      : "l"(a), "l"(b));
}
/// Before the first of a group.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
/// Ends a group.
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Until all groups but the last kGroups are done.
template <int kGroups>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}
/// All threads': this block is there; and until all of the cluster are, but for threads that have ended. What was
/// written before is seen behind it.
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); }
/// Behind wgmma_wait<0>(): what reads the sums comes after it.
template <int kSlabs, int kSums>
__device__ __forceinline__ void wgmma_done(float (&sums)[kSlabs][kSums]) {
#pragma unroll
  for (int i = 0; i < kSlabs; ++i) {
#pragma unroll
    for (int j = 0; j < kSums; ++j) asm volatile("" : "+f"(sums[i][j])::"memory");
  }
}

}  // namespace firstlight::cuda

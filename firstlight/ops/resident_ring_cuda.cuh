// SPDX-License-Identifier: Apache-2.0
// The ring through which a resident kernel's weights come, and the barriers of its consumers, of a block and of all.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "firstlight/ops/memory_barrier_cuda.cuh"

namespace firstlight::cuda {

inline constexpr int kResidentWarps = 8;  ///< consumers; of four more one fetches
inline constexpr int kFinishers = 3;      ///< and these make results of sums
/// A stage: 16 rows by so many of k. 4 KiB of a row at a time are read at the plain read rate, 2 KiB 2 % slower, and
/// with rows that do not begin at multiples of 128 bytes in shared memory 4.24 TB/s come instead of 4.66.
inline constexpr int kStageColumns = 2048;
inline constexpr int kStagePitch = 2 * kStageColumns;  ///< bytes
inline constexpr int kStageBytes = 16 * kStagePitch;
inline constexpr int kMostStages = 3;
inline constexpr int kPartColumns = 1024;  ///< of a stage's, that the warps take at once, 128 each
inline constexpr int kStageParts = kStageColumns / kPartColumns;

/// Where producer or consumer stands in the ring.
struct RingPosition {
  int stage = 0;
  unsigned parity = 0;
  __device__ __forceinline__ void advance(int n_stages) {
    if (++stage == n_stages) stage = 0, parity ^= 1;
  }
};

/// Copies bytes (a multiple of 16) to shared memory; `done` counts them. Read once: the first to leave L2.
__device__ __forceinline__ void copy_bulk(uint32_t to, const void* from, unsigned bytes, MemoryBarrier& done,
                                          uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(shared_address(&done)), "l"(policy)
      : "memory");
}
/// Threads of a warpgroup with this branch before them have that many registers from here on.
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

/// All consumers of the block; the crews of attention have barriers 1 and 2.
__device__ __forceinline__ void sync_consumers() {
  asm volatile("bar.sync 3, %0;" ::"n"(kResidentWarps * 32) : "memory");
}

/// All finishers of the block.
__device__ __forceinline__ void sync_finishers() { asm volatile("bar.sync 4, %0;" ::"n"(kFinishers * 32) : "memory"); }

/// A barrier of all blocks, between an instruction and the next. The counter only grows, and is zero when a launch
/// begins. In a block those arrive who write what the instruction is for: a product's finishers, else the consumers.
struct GridBarrier {
  unsigned* counter;
  unsigned target = 0;
  /// wait() is from here on for one instruction more.
  __device__ __forceinline__ void next() { target += gridDim.x; }
  /// One thread's, behind a barrier of all who have written: what they wrote is seen by whoever waits.
  __device__ __forceinline__ void arrive() const {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
  }
  /// One thread's; a barrier of those who follow it must come behind.
  __device__ __forceinline__ void wait() const {
    unsigned n;
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(n) : "l"(counter) : "memory");
    } while (n < target);
  }
  /// All consumers'.
  __device__ __forceinline__ void wait_all() const {
    if (threadIdx.x == 0) wait();
    sync_consumers();
  }
};

}  // namespace firstlight::cuda

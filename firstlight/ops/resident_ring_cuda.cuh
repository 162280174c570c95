// SPDX-License-Identifier: Apache-2.0
// The ring through which a resident kernel's weights come, and the barriers of its consumers, of a block and of all.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

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

__device__ __forceinline__ uint32_t shared_address(const void* at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

struct MemoryBarrier {
  uint64_t state;
  __device__ void init(unsigned n) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)), "r"(n) : "memory");
  }
  __device__ void arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(this)) : "memory");
  }
  /// Behind loads from shared memory, which have come when this is said: an arrival alone may overtake loads that stand
  /// in line behind others from global memory, and a bulk copy then overwrites what they have not read (seen where x is
  /// reloaded, k > 4,096: some rows of weights in one pass of three at 5 rows). `of_loads` depends on each of them;
  /// `nothing` is a zero that the compiler does not know.
  __device__ void arrive_behind(uint32_t of_loads, uint32_t nothing) {
    asm volatile(
        "{\n"
        ".reg .b32 at;\n"
        "and.b32 at, %1, %2;\n"
        "add.u32 at, at, %0;\n"
        "mbarrier.arrive.shared::cta.b64 _, [at];\n"
        "}" ::"r"(shared_address(this)),
        "r"(of_loads), "r"(nothing)
        : "memory");
  }
  __device__ void arrive_and_expect(unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(this)), "r"(bytes)
                 : "memory");
  }
  __device__ void wait(unsigned parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(shared_address(this)),
        "r"(parity)
        : "memory");
  }
};

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

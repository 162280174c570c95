// SPDX-License-Identifier: Apache-2.0
// A barrier in shared memory on which copies to shared memory end, and what names shared memory to an instruction.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace firstlight::cuda {

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

}  // namespace firstlight::cuda

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

/// Copies bytes (a multiple of 16) to shared memory; `done` counts them. Read once: the first to leave L2.
__device__ __forceinline__ void copy_bulk(uint32_t to, const void* from, unsigned bytes, MemoryBarrier& done,
                                          uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(shared_address(&done)), "l"(policy)
      : "memory");
}

}  // namespace firstlight::cuda

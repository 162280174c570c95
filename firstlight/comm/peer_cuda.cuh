// SPDX-License-Identifier: Apache-2.0
// What a thread of a GPU is to an exchange with peers.
#pragma once
#include <cuda_runtime.h>

#include "firstlight/comm/peer_exchange-inl.h"

namespace firstlight::peer {

/// Memory that another GPU reads or writes: past the first-level cache, which knows nothing of other GPUs.
struct OnGpu {
  __device__ int thread() const { return static_cast<int>(threadIdx.x); }
  __device__ int n_threads() const { return static_cast<int>(blockDim.x); }
  __device__ int block() const { return static_cast<int>(blockIdx.x); }
  __device__ int n_blocks() const { return static_cast<int>(gridDim.x); }
  __device__ void sync() const { __syncthreads(); }
  __device__ bool all(bool mine) const { return __syncthreads_and(mine) != 0; }
  __device__ Words load(const Words* from) const {
    Words x;
    asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.word[0]), "=r"(x.word[1]), "=r"(x.word[2]), "=r"(x.word[3])
                 : "l"(from)
                 : "memory");
    return x;
  }
  __device__ void store(Words* to, const Words& x) const {
    asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(x.word[0]), "r"(x.word[1]),
                 "r"(x.word[2]), "r"(x.word[3])
                 : "memory");
  }
  __device__ Words read(const float* data, int64_t i, int64_t n) const {
    return 4 * i + 4 <= n ? load(reinterpret_cast<const Words*>(data + 4 * i)) : vector_of(data, i, n);
  }
  __device__ void write(float* data, int64_t i, int64_t n, const Words& x) const { set_vector(data, i, n, x); }
  __device__ void signal(uint32_t* to, uint32_t value) const {
    __threadfence_system();  // of the block's other threads' writes, too: they were ordered before by sync()
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
  }
  __device__ uint32_t signalled(const uint32_t* from) const {
    uint32_t value;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
  }
  __device__ uint32_t arrive(uint32_t* count) const { return atomicAdd(count, 1u); }
  /// A rank's threads meet before they launch, so a wait is for microseconds: one of 10 s and more is for nothing.
  __device__ bool given_up(const Call& call, uint32_t polls) const {
    constexpr uint32_t kLook = 512, kMost = 1u << 26;  // a look goes to host memory; a poll takes 0.2 us and more
    if (polls % kLook != 0) return false;
    volatile uint32_t* stop = call.stop;
    if (polls >= kMost && *stop == 0) *stop = 2;
    return *stop != 0;
  }
};

/// As every kernel of a pass: begins while its predecessor ends, and lets its successor do so.
__device__ __forceinline__ void enter() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

}  // namespace firstlight::peer

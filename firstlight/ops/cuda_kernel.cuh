// SPDX-License-Identifier: Apache-2.0
// What every kernel here is written with: the launch, sums over a warp and a block, widening.
#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <unordered_map>

#include "firstlight/device/cuda.h"

namespace firstlight::cuda {

/// What a launch must know of a kernel and its GPU, asked once a thread.
struct KernelFacts {
  size_t static_bytes = 0;
  int registers = 0, n_sms = 0;
};
inline const KernelFacts& facts_of(const void* kernel, const char* what) {
  static thread_local std::unordered_map<const void*, KernelFacts> known;
  const auto [at, is_new] = known.try_emplace(kernel);
  if (is_new) {
    cudaFuncAttributes attributes{};
    check(cudaFuncGetAttributes(&attributes, kernel), what);
    int device = 0, n_sms = 0;
    check(cudaGetDevice(&device), what);
    check(cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, device), what);
    at->second = {attributes.sharedSizeBytes, attributes.numRegs, n_sms};
  }
  return at->second;
}

/// The percentage of a multiprocessor's memory that its blocks of this launch need as shared memory. The rest is L1,
/// where streaming loads in flight live (128256 x 4096: 245 us with a large L1, 325 with a small one); without a word
/// from the launch a kernel behind one with much shared memory would keep that one's division.
inline unsigned carveout(const KernelFacts& kernel, dim3 grid, int threads, size_t shared_bytes) {
  constexpr size_t kShared = 228u << 10, kReserved = 1u << 10;  // of a multiprocessor; of a block, by the driver
  const int64_t n_blocks = int64_t{grid.x} * grid.y * grid.z;
  const int64_t room = std::min<int64_t>(2048, 65536 / std::max(kernel.registers, 16)) / threads;
  const int64_t blocks =
      std::clamp<int64_t>((n_blocks + kernel.n_sms - 1) / kernel.n_sms, 1, std::max<int64_t>(room, 1));
  const size_t wanted = static_cast<size_t>(blocks) * (shared_bytes + kernel.static_bytes + kReserved);
  return static_cast<unsigned>(wanted >= kShared ? 100 : (100 * wanted + kShared - 1) / kShared);
}

/// Launches so that the kernel may start while its predecessor on the stream ends (programmatic dependent launch):
/// every kernel calls wait_for_predecessor() before it touches what others write, in every thread. What the pass's
/// copy and the loader brought was there before any of them began.
template <class... Params, class... Args>
void launch(const char* what, void (*kernel)(Params...), dim3 grid, int threads, size_t shared_bytes,
            cudaStream_t stream, Args... args) {
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
  attributes[1].val.sharedMemCarveout =
      carveout(facts_of(reinterpret_cast<const void*>(kernel), what), grid, threads, shared_bytes);
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...), what);
}

__device__ __forceinline__ void wait_for_predecessor() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
/// The successor may take free multiprocessors from now on; it waits for this kernel's end before it reads. Said first
/// of all, so that a weight's first bytes are on their way two kernels ahead.
__device__ __forceinline__ void let_successor_start() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
  return x;
}

/// The sum over the block in every thread, always added in the same order. `shared`: 32 floats; all threads call.
__device__ __forceinline__ float block_sum(float x, float* shared) {
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0;
  for (unsigned w = 0; w < blockDim.x / 32; ++w) sum += shared[w];
  return sum;
}

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void narrow(float x, float* to) { *to = x; }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16* to) { *to = __float2bfloat16_rn(x); }

/// Two bf16 in a register, the first in the low half.
__device__ __forceinline__ uint32_t pack(__nv_bfloat16 a, __nv_bfloat16 b) {
  return static_cast<uint32_t>(__bfloat16_as_ushort(a)) | static_cast<uint32_t>(__bfloat16_as_ushort(b)) << 16;
}
__device__ __forceinline__ uint32_t pack(float a, float b) {
  return pack(__float2bfloat16_rn(a), __float2bfloat16_rn(b));
}

/// x as the sum of two bf16: what rounding keeps, and, `to_low` values on, what it loses, rounded.
__device__ __forceinline__ void put_terms(float x, __nv_bfloat16* high, int64_t to_low) {
  const __nv_bfloat16 h = __float2bfloat16_rn(x);
  high[0] = h;
  high[to_low] = __float2bfloat16_rn(x - __bfloat162float(h));
}

/// (a, b) as the sum of two bf16 pairs: what rounding to bf16 keeps, and what it loses, rounded.
__device__ __forceinline__ void split(float a, float b, uint32_t& high, uint32_t& low) {
  const __nv_bfloat16 ha = __float2bfloat16_rn(a), hb = __float2bfloat16_rn(b);
  high = pack(ha, hb);
  low = pack(a - __bfloat162float(ha), b - __bfloat162float(hb));
}

}  // namespace firstlight::cuda

// SPDX-License-Identifier: Apache-2.0
// Where the sums of single rows over codes meet: a block's warps in shared memory, a row's parts in global memory.
#pragma once
#include "firstlight/ops/attend_codes_parts_cuda.cuh"
#include "firstlight/ops/codes_expand_cuda.cuh"

namespace firstlight::cuda {

/// Bytes on their way to L2: 16-byte units.
__device__ __forceinline__ void fetch_to_l2(const void* from, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}

/// Where sums wait: of a part, over its exact pages (which 0) or its codes (1).
template <int kDim>
struct CodePartials {
  float* sums;
  float2* shares;  ///< maximum (in powers of two) and divisor
  __device__ CodePartials(const CodeSinglesParams& p, int slot, int head_block, int which) {
    const int64_t at = (int64_t{slot} * p.head_blocks + head_block) * 2 + which;
    const int64_t n = int64_t{p.most_parts} * p.head_blocks * 2 * kHeadsAtOnce;
    sums = p.partials + at * kHeadsAtOnce * kDim;
    shares = reinterpret_cast<float2*>(p.partials + n * kDim) + at * kHeadsAtOnce;
  }
};

/// Shared memory of a block.
template <int kDim>
struct CodeShared {
  static constexpr int kStride = kDim + 4;
  float maxima[kCodeWarps][kHeadsAtOnce], divisors[kCodeWarps][kHeadsAtOnce], units[kHeadsAtOnce], totals[kHeadsAtOnce];
  union alignas(16) {
    float sums[kCodeWarps][kHeadsAtOnce][kStride];
    struct {
      float shares[kHeadsAtOnce][kMostParts + 32], exact[kHeadsAtOnce][kDim], rotated[kHeadsAtOnce][kDim];
    } merge;
    alignas(16) int8_t query[kHeadsAtOnce][2 * kDim];  ///< of 8 dimensions: 4 high bytes, 4 low; the same of the others
  };
  alignas(16) uint8_t scales[kCodeWarps][2][4 * kPageTokens];  ///< of this page and the next, keys' and values'
  ExpandTables tables[4];                                      ///< the same
  bool last;
};

/// The warps' sums, put down in shared memory, become the part's. All threads call.
template <int kDim>
__device__ void join_code_warps(const CodeSinglesParams& p, const CodePart& part, int which, CodeShared<kDim>& shared) {
  const CodePartials<kDim> partials(p, part.slot + part.part, part.head_block, which);
  __syncthreads();
  for (int at = static_cast<int>(threadIdx.x) * 4; at < part.n_heads * kDim; at += kCodeWarps * 128) {
    const int g = at / kDim, i = at % kDim;
    float top = shared.maxima[0][g], total = 0;
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int w = 1; w < kCodeWarps; ++w) top = fmaxf(top, shared.maxima[w][g]);
#pragma unroll
    for (int w = 0; w < kCodeWarps; ++w) {
      const float share = exp2f(shared.maxima[w][g] - top);
      const float4 x = *reinterpret_cast<const float4*>(&shared.sums[w][g][i]);
      sum.x += share * x.x, sum.y += share * x.y, sum.z += share * x.z, sum.w += share * x.w;
      total += share * shared.divisors[w][g];
    }
    *reinterpret_cast<float4*>(partials.sums + at) = sum;
    if (i == 0) partials.shares[g] = make_float2(top, total);
  }
  __syncthreads();
}

/// True in the block that comes last of a row's: all its parts' sums are there.
template <int kDim>
__device__ __forceinline__ bool comes_last(const CodeSinglesParams& p, const CodePart& part, CodeShared<kDim>& shared) {
  if (threadIdx.x == 0) {
    unsigned* arrivals = p.arrivals + int64_t{part.index} * p.head_blocks + part.head_block;
    unsigned before;
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;" : "=r"(before) : "l"(arrivals) : "memory");
    shared.last = before + 1 == static_cast<unsigned>(part.n_parts);
    if (shared.last) *arrivals = 0;
  }
  __syncthreads();
  return shared.last;
}

}  // namespace firstlight::cuda

// SPDX-License-Identifier: Apache-2.0
// Where the sums of single rows over codes meet: a block's warps in shared memory, a row's parts in global memory.
#pragma once
#include "firstlight/ops/attend_codes_parts_cuda.cuh"
#include "firstlight/ops/codes_expand_cuda.cuh"
#include "firstlight/ops/resident_ring_cuda.cuh"

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

/// Shared memory of a block, beside the ring's slots.
template <int kDim, int kWarps>
struct CodeShared {
  alignas(16) int8_t query[kHeadsAtOnce][2 * kDim];  ///< of 4 dimensions: high bytes, then low ones
  float maxima[kWarps][kHeadsAtOnce], divisors[kWarps][kHeadsAtOnce], units[kHeadsAtOnce], totals[kHeadsAtOnce];
  ExpandTables tables[4];  ///< the same
  MemoryBarrier full[kWarps][kMostDeep];
  CodePart parts[2];                   ///< this one, and the next
  int each, n_parts;                   ///< the plan's
  bool is_there, next_is_there, last;  ///< part 0; the next one, for which others may still read that word
};

/// What lies where the ring's slots are, when no page is there or on its way.
template <int kDim, int kWarps>
union CodeMeeting {
  float sums[kWarps][kHeadsAtOnce][kDim + 4];
  struct {
    float shares[kHeadsAtOnce][kMostParts + 32];
    float exact[kWarps * 128], rotated[kWarps * 128];  ///< four values a thread
  } merge;
};

/// The warps' sums, put down in shared memory, become the part's. All threads call.
template <int kDim, int kWarps>
__device__ void join_code_warps(const CodeSinglesParams& p, const CodePart& part, int which,
                                const CodeShared<kDim, kWarps>& shared, const CodeMeeting<kDim, kWarps>& meeting) {
  const CodePartials<kDim> partials(p, part.slot + part.part, part.head_block, which);
  __syncthreads();
  for (int at = static_cast<int>(threadIdx.x) * 4; at < part.n_heads * kDim; at += kWarps * 128) {
    const int g = at / kDim, i = at % kDim;
    float top = shared.maxima[0][g], total = 0;
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int w = 1; w < kWarps; ++w) top = fmaxf(top, shared.maxima[w][g]);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float share = exp2f(shared.maxima[w][g] - top);
      const float4 x = *reinterpret_cast<const float4*>(&meeting.sums[w][g][i]);
      sum.x += share * x.x, sum.y += share * x.y, sum.z += share * x.z, sum.w += share * x.w;
      total += share * shared.divisors[w][g];
    }
    *reinterpret_cast<float4*>(partials.sums + at) = sum;
    if (i == 0) partials.shares[g] = make_float2(top, total);
  }
  __syncthreads();
}

/// True in the block that comes last of a row's: all its parts' sums are there. Behind a barrier.
template <int kDim, int kWarps>
__device__ __forceinline__ bool comes_last(const CodeSinglesParams& p, const CodePart& part,
                                           CodeShared<kDim, kWarps>& shared) {
  if (part.n_parts == 1) return true;
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

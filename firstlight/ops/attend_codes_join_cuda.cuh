// SPDX-License-Identifier: Apache-2.0
// Where the sums of single rows over codes meet: a block's warps in shared memory, a row's parts in global memory.
#pragma once
#include "firstlight/ops/attend_codes_parts_cuda.cuh"
#include "firstlight/ops/codes_expand_cuda.cuh"
#include "firstlight/ops/resident_ring_cuda.cuh"

namespace firstlight::cuda {

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

/// What a warp has still to ask for; lane 0's.
struct AskedPages {
  const CodePart *next, *end;  ///< of the block, behind the one whose pages are asked for
  const int32_t* numbers;      ///< of its pages of codes, behind the one whose number is known; `left` of them
  int left, piece, n_pieces;   ///< piece: of its exact pages, the next
  int to_values;               ///< of the page whose number is known: bytes from keys to values if it is exact, else 0
  const uint8_t* head;         ///< page 0 of its kind
  uint64_t stride;             ///< to page 1
  const uint8_t* values;       ///< where halves come: of the page whose keys were asked for last, or null
  unsigned values_bytes;
};

/// Shared memory of a block, beside the ring's slots.
template <int kDim, int kWarps>
struct CodeShared {
  alignas(16) int8_t query[kHeadsAtOnce][2 * kDim];  ///< of 4 dimensions: high bytes, then low ones
  float maxima[kWarps][kHeadsAtOnce], divisors[kWarps][kHeadsAtOnce], units[kHeadsAtOnce], totals[kHeadsAtOnce];
  ExpandTables tables[4];  ///< the same
  MemoryBarrier full[kWarps][kMostDeep];
  AskedPages asked[kWarps];
  CodePart parts[kPartsKnown];  ///< of the block
  bool is_there[kPartsKnown], last;
};

/// Where a block's warps meet: for one set of heads at a time.
template <int kDim, int kWarps>
union CodeMeeting {
  float sums[kWarps][kSetHeads][kDim];
  uint4 exact_query[kDim / 16][32];  ///< of each lane, until sums are put down
  struct {
    float shares[kHeadsAtOnce][kMostParts + 32];
    float exact[kWarps * 128], rotated[kWarps * 128];  ///< four values a thread
  } merge;
};

/// The warps' sums of a set of heads, put down in shared memory, become the part's. All threads call.
template <int kDim, int kWarps>
__device__ void join_code_warps(const CodeSinglesParams& p, const CodePart& part, int which, int set,
                                const CodeShared<kDim, kWarps>& shared, const CodeMeeting<kDim, kWarps>& meeting) {
  const CodePartials<kDim> partials(p, part.slot + part.part, part.head_block, which);
  __syncthreads();
  const int at = static_cast<int>(threadIdx.x) * 4, in_set = at / kDim, g = set * kSetHeads + in_set, i = at % kDim;
  if (in_set < kSetHeads && g < part.n_heads) {
    float top = shared.maxima[0][g], total = 0;
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int w = 1; w < kWarps; ++w) top = fmaxf(top, shared.maxima[w][g]);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float share = exp2f(shared.maxima[w][g] - top);
      const float4 x = *reinterpret_cast<const float4*>(&meeting.sums[w][in_set][i]);
      sum.x += share * x.x, sum.y += share * x.y, sum.z += share * x.z, sum.w += share * x.w;
      total += share * shared.divisors[w][g];
    }
    *reinterpret_cast<float4*>(partials.sums + g * kDim + i) = sum;
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

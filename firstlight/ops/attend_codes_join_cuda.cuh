// SPDX-License-Identifier: Apache-2.0
// Where the sums of single rows over codes meet: a block's warps, in shared memory, a set of heads at a time.
#pragma once
#include "firstlight/ops/attend_codes_parts_cuda.cuh"
#include "firstlight/ops/attend_merge_cuda.cuh"
#include "firstlight/ops/codes_expand_cuda.cuh"
#include "firstlight/ops/resident_ring_cuda.cuh"

namespace firstlight::cuda {

/// How far a warp has prepared: of the block's parts that are known which, and of that one's items how many.
struct AskedItems {
  int part, n_parts, item;
};

/// Shared memory of a block, beside the ring's slots.
template <int kDim, int kSets, int kWarps, int kDeep>
struct CodeShared {
  static constexpr int kHeads = kSets * kSetHeads;
  alignas(16) int8_t query[kHeads][2 * kDim];  ///< of 4 dimensions: high bytes, then low ones
  float maxima[kWarps][kHeads], divisors[kWarps][kHeads], units[kHeads];
  MemoryBarrier full[kWarps][kDeep];
  AskedItems asked[kWarps];
  alignas(16) RowPart parts[kPartsKnown];  ///< of the block
  bool is_there[kPartsKnown];
  union {
    struct {
      ExpandTables tables[4];            ///< the same
      uint4 exact_query[kDim / 16][32];  ///< of each lane
      __nv_bfloat16 own[2][kDim];        ///< of the row itself, key and value, where nobody has stored them
    } start;                             ///< until sums are put down
    float sums[kWarps][kSetHeads][kDim];
    float joined[kHeads][kDim];
    struct {
      float4 sums[kWarps][kDim / 4];
      float2 shares[kWarps][kDim / 4];
    } merge;
  };
};

/// Four neighbouring values of the block's heads each: those of a thread.
template <int kDim, int kSets, int kWarps>
struct CodePieces {
  static constexpr int kAll = kSets * kSetHeads * (kDim / 4), kThreads = kWarps * 32;
  Running of[(kAll + kThreads - 1) / kThreads];
  /// For each that the thread has, of heads that there are: fn(piece, head, first channel).
  template <class Fn>
  __device__ __forceinline__ void each(int n_heads, const Fn& fn) {
#pragma unroll
    for (int k = 0; k < (kAll + kThreads - 1) / kThreads; ++k) {
      const int at = static_cast<int>(threadIdx.x) + k * kThreads;
      if (at < n_heads * (kDim / 4)) fn(of[k], at / (kDim / 4), at % (kDim / 4) * 4);
    }
  }
};

/// What the warps have put down of a set of heads is added to the threads' pieces. All threads call.
template <int kDim, int kSets, int kWarps, class Shared>
__device__ __forceinline__ void join_warps(int set, int n_heads, const Shared& shared,
                                           CodePieces<kDim, kSets, kWarps>& pieces) {
  __syncthreads();
  pieces.each(n_heads, [&](Running& piece, int g, int i) {
    if (g / kSetHeads != set) return;
    Running all;
    all.top = shared.maxima[0][g];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) all.top = fmaxf(all.top, shared.maxima[w][g]);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float share = power_of_two(shared.maxima[w][g] - all.top);
      all.sums = scaled_sum(all.sums, share, *reinterpret_cast<const float4*>(&shared.sums[w][g % kSetHeads][i]));
      all.total += share * shared.divisors[w][g];
    }
    piece.add(all);
  });
  __syncthreads();
}

/// Pieces of sums over codes are rotated back, a warp a head. All threads call.
template <int kDim, int kSets, int kWarps, class Shared>
__device__ __forceinline__ void unrotate_pieces(const tq::Signs& signs, int n_heads, Shared& shared,
                                                CodePieces<kDim, kSets, kWarps>& pieces) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const uint32_t flips = lane_signs<kDim>(signs);
  pieces.each(n_heads,
              [&](Running& piece, int g, int i) { *reinterpret_cast<float4*>(&shared.joined[g][i]) = piece.sums; });
  __syncthreads();
  for (int g = warp; g < n_heads; g += kWarps) {
    float x[kDim / 32];
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) x[j] = shared.joined[g][32 * j + lane];
    unrotate<kDim>(flips, x);
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) shared.joined[g][32 * j + lane] = x[j];
  }
  __syncthreads();
  pieces.each(n_heads,
              [&](Running& piece, int g, int i) { piece.sums = *reinterpret_cast<float4*>(&shared.joined[g][i]); });
  __syncthreads();
}

}  // namespace firstlight::cuda

// SPDX-License-Identifier: Apache-2.0
// Where the sums of single rows over codes meet: a block's warps, in shared memory, a set of heads at a time.
#pragma once
#include "firstlight/ops/attend_codes_parts_cuda.cuh"
#include "firstlight/ops/attend_merge_cuda.cuh"
#include "firstlight/ops/codes_expand_cuda.cuh"
#include "firstlight/ops/memory_barrier_cuda.cuh"

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
  uint64_t signs[tq::rounds(kDim)][kDim / 64];  ///< of the part's values
  union {
    struct {
      ExpandTables tables[4];            ///< the same
      uint4 exact_query[kDim / 16][32];  ///< of each lane
      __nv_bfloat16 own[2][kDim];        ///< of the row itself, key and value, where nobody has stored them
    } start;                             ///< until sums are put down
    float sums[kWarps][kSetHeads][kDim];
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

/// Pieces of sums over codes are rotated back: those of a head lie in neighbouring lanes. All threads call.
template <int kDim, int kSets, int kWarps, class Shared>
__device__ __forceinline__ void unrotate_pieces(const Shared& shared, CodePieces<kDim, kSets, kWarps>& pieces) {
  static_assert(kWarps * 32 % (kDim / 4) == 0);
  const int lane = static_cast<int>(threadIdx.x) % 32, at = lane * 4 % kDim;
#pragma unroll
  for (Running& piece : pieces.of) {
    float4& x = piece.sums;
#pragma unroll 1
    for (int round = tq::rounds(kDim) - 1; round >= 0; --round) {
      const float4 y = make_float4(x.x + x.y, x.x - x.y, x.z + x.w, x.z - x.w);
      x = make_float4(y.x + y.z, y.y + y.w, y.x - y.z, y.y - y.w);
#pragma unroll
      for (int h = kDim / 8; h >= 1; h /= 2) {
        const float sign = lane & h ? -1.0f : 1.0f;
        for (float* each : {&x.x, &x.y, &x.z, &x.w}) *each = fmaf(*each, sign, __shfl_xor_sync(kWholeWarp, *each, h));
      }
      const auto flips = static_cast<uint32_t>(shared.signs[round][at / 64] >> (at % 64));
      const auto flipped = [&](float each, int j) { return __uint_as_float(__float_as_uint(each) ^ flips >> j << 31); };
      x = make_float4(flipped(x.x, 0), flipped(x.y, 1), flipped(x.z, 2), flipped(x.w, 3));
    }
    x = scaled_sum(float4{}, tq::rotation_scale(kDim), x);
  }
}

}  // namespace firstlight::cuda

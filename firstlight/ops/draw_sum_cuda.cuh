// SPDX-License-Identifier: Apache-2.0
// A row of logits in the hands of a cluster of blocks, each with a slice of its ids: sums over the row, and the first
// id with which a sum exceeds a bound. All in whole numbers, so no bit depends on an order.
#pragma once
#include <cooperative_groups.h>

#include "firstlight/ops/cuda_kernel.cuh"
#include "firstlight/ops/ops.h"
#include "firstlight/ops/sampling_weight.h"

namespace firstlight::cuda {

inline constexpr int kDrawThreads = 1024, kDrawWarps = kDrawThreads / 32, kDrawBlocks = 8;
inline constexpr int kBins = 256;

/// A copy of the bins for each lane: no bank conflicts, and logits of one magnitude do not queue for one counter.
using LaneBins = unsigned long long[kBins][32];

struct DrawShared {
  unsigned long long bins[2][kBins];  ///< of this block, in turn: another may still read the last ones
  unsigned long long of_block[2];     ///< the same of sums by id
  unsigned long long of_warps[kDrawWarps];
  Likeliest best, bests[kDrawWarps];
  uint64_t rest, next_rest;  ///< of the wanted share, in the chosen bin
  uint64_t in_bin;           ///< of all
  int bin, found;
  uint64_t roots[sampling::kRoots];
};

/// The cluster's view of its row. All threads of all its blocks call every function together.
struct RowOfCluster {
  const float* logits;  ///< of id 0
  int begin, end;       ///< the block's ids
  LaneBins& lanes;      ///< zeros
  DrawShared& shared;
  int turn = 0;

  __device__ static auto cluster() { return cooperative_groups::this_cluster(); }

  /// fn(id) for the block's ids, in no order.
  template <class F>
  __device__ void each(const F& fn) const {
    for (int id = begin + static_cast<int>(threadIdx.x); id < end; id += kDrawThreads) fn(id);
  }

  /// The sum of value(id) over the row; find() then knows each warp's.
  template <class Value>
  __device__ uint64_t sum(const Value& value) {
    unsigned long long mine = 0;
    in_warp([&](int id) { mine += value(id); });
    mine = sum_of_warp(mine);
    if (threadIdx.x % 32 == 0) shared.of_warps[threadIdx.x / 32] = mine;
    __syncthreads();
    turn ^= 1;
    if (threadIdx.x < 32) {
      const unsigned long long all = sum_of_warp(shared.of_warps[threadIdx.x]);
      if (threadIdx.x == 0) shared.of_block[turn] = all;
    }
    cluster().sync();
    uint64_t total = 0;
    for (unsigned b = 0; b < kDrawBlocks; ++b) total += *cluster().map_shared_rank(&shared.of_block[turn], b);
    return total;
  }

  /// Behind sum(value), of more than `bound`: tell(id) in one lane of the row, for the first id with which the sum
  /// exceeds it.
  template <class Value, class Tell>
  __device__ void find(const Value& value, uint64_t bound, const Tell& tell) const {
    uint64_t before = 0;
    for (unsigned b = 0; b < cluster().block_rank(); ++b)
      before += *cluster().map_shared_rank(&shared.of_block[turn], b);
    for (unsigned w = 0; w < threadIdx.x / 32; ++w) before += shared.of_warps[w];
    if (bound < before || bound - before >= shared.of_warps[threadIdx.x / 32]) return;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    for (int first = warp_begin(); first < warp_end(); first += 32) {
      const unsigned long long mine = first + lane < warp_end() ? value(first + lane) : 0;
      unsigned long long up_to = mine;
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const unsigned long long other = __shfl_up_sync(0xffffffffu, up_to, step);
        if (lane >= step) up_to += other;
      }
      const unsigned exceeds = __ballot_sync(0xffffffffu, before + up_to > bound);
      if (exceeds != 0) {
        if (lane == __ffs(static_cast<int>(exceeds)) - 1) tell(first + lane);
        return;
      }
      before += __shfl_sync(0xffffffffu, up_to, 31);
    }
  }

 private:
  /// A warp's ids lie together, and warps in order, so that sums go by id.
  __device__ int per_warp() const { return (end - begin + kDrawWarps - 1) / kDrawWarps; }
  __device__ int warp_begin() const { return min(end, begin + static_cast<int>(threadIdx.x) / 32 * per_warp()); }
  __device__ int warp_end() const { return min(end, warp_begin() + per_warp()); }
  template <class F>
  __device__ void in_warp(const F& fn) const {
    for (int id = warp_begin() + static_cast<int>(threadIdx.x) % 32; id < warp_end(); id += 32) fn(id);
  }
  __device__ static unsigned long long sum_of_warp(unsigned long long x) {
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
  }
};

}  // namespace firstlight::cuda

// SPDX-License-Identifier: Apache-2.0
// Attention of single rows: a row's result is made of its chunks' sums, always in the same order.
#pragma once
#include "firstlight/ops/attend_join_cuda.cuh"

namespace firstlight::cuda {

/// What is added up of chunks. Every operation is named, so that all who merge give the same bits.
struct Running {
  float4 sums = {};
  float top = -INFINITY, total = 0;
  __device__ __forceinline__ void add(const float4& x, float maximum, float divisor) {
    const float either = fmaxf(top, maximum), base = either == -INFINITY ? 0 : either;
    const float mine = power_of_two(top - base), its = power_of_two(maximum - base);
    const auto sum = [&](float a, float b) { return __fmaf_rn(b, its, __fmul_rn(a, mine)); };
    sums = make_float4(sum(sums.x, x.x), sum(sums.y, x.y), sum(sums.z, x.z), sum(sums.w, x.w));
    total = sum(total, divisor);
    top = either;
  }
  __device__ __forceinline__ void add(const Running& other) { add(other.sums, other.top, other.total); }
  __device__ __forceinline__ Running of_lane(int step) const {
    Running x;
    x.sums.x = __shfl_down_sync(0xffffffffu, sums.x, step), x.sums.y = __shfl_down_sync(0xffffffffu, sums.y, step);
    x.sums.z = __shfl_down_sync(0xffffffffu, sums.z, step), x.sums.w = __shfl_down_sync(0xffffffffu, sums.w, step);
    x.top = __shfl_down_sync(0xffffffffu, top, step), x.total = __shfl_down_sync(0xffffffffu, total, step);
    return x;
  }
};

/// Chunks are added up in classes, c % kClasses, each in order, and then the classes, neighbours first.
inline constexpr int kClasses = 8;
/// Pieces that a crew merges at once with a lane a class.
inline constexpr int kMergedAtOnce = kSinglesWarps * 32 / kClasses;

/// One piece of a row's result, by kLanes neighbouring lanes, who have kClasses / kLanes classes each and ask for kDeep
/// chunks of each at once. `chunk_0`: where the piece of chunk 0 is. The first of the lanes gets it.
template <int kLanes, int kDeep>
__device__ __forceinline__ Running merge_piece(ChunkPiece* chunk_0, int64_t pitch, int n_chunks) {
  constexpr int kOwn = kClasses / kLanes;
  Running sums[kOwn];
  for (int first = static_cast<int>(threadIdx.x) % kLanes * kOwn; first < n_chunks; first += kClasses * kDeep) {
    PieceInFlight x[kDeep][kOwn];
    const auto chunk = [&](int i) { return first + i / kOwn * kClasses + i % kOwn; };
#pragma unroll
    for (int i = 0; i < kDeep * kOwn; ++i) {
      if (chunk(i) < n_chunks) x[i / kOwn][i % kOwn].load(chunk_0 + chunk(i) * pitch);
    }
    // Those that were not there are asked for again side by side: one by one each would take a trip to L2.
    for (bool all_there = false; !all_there;) {
      all_there = true;
#pragma unroll
      for (int i = 0; i < kDeep * kOwn; ++i) {
        PieceInFlight& at = x[i / kOwn][i % kOwn];
        if (chunk(i) >= n_chunks || at.is_whole()) continue;
        at.load(chunk_0 + chunk(i) * pitch);
        all_there = false;
      }
    }
#pragma unroll
    for (int i = 0; i < kDeep * kOwn; ++i) {
      if (chunk(i) >= n_chunks) break;
      const PieceInFlight& at = x[i / kOwn][i % kOwn];
      PieceInFlight::clear(chunk_0 + chunk(i) * pitch);
      sums[i % kOwn].add(at.sums, at.share.x, at.share.y);
    }
  }
#pragma unroll
  for (int step = 1; step < kOwn; step *= 2) {
#pragma unroll
    for (int i = 0; i + step < kOwn; i += 2 * step) sums[i].add(sums[i + step]);
  }
  if constexpr (kLanes > 1) {  // else some of the warp's lanes may be elsewhere
    __syncwarp();
#pragma unroll
    for (int step = 1; step < kLanes; step *= 2) sums[0].add(sums[0].of_lane(step));
  }
  return sums[0];
}

/// Rows' results from their chunks' sums: a crew's share of the work, when it has no more items. It waits for others'
/// items, and no item waits for a merge. First come the crews that had no item, then some that had; the others may
/// leave. No bit depends on who merges.
template <int kDim>
__device__ void merge_chunks(const SinglesParams& p, const AttendPlan& plan, int crew, int n_crews) {
  const int n_merges = p.n_rows * p.head_blocks, thread = crew_thread();
  const int n_parts = max(1, min(p.heads * (kDim / 4) / kMergedAtOnce, quotient(n_crews, n_merges)));
  const int64_t pitch = p.heads * (kDim / 4);
  int job = crew - plan.n_items;
  if (job < 0) job += ceil_quotient(-job, n_crews) * n_crews;
  for (; job < n_merges * n_parts; job += n_crews) {
    const int merge = quotient(job, n_parts), part = job - merge * n_parts;
    Item item;
    item.index = quotient(merge, p.head_blocks);
    item.row = p.rows[item.index];
    set_heads(p, merge - item.index * p.head_blocks, item);
    const int n_chunks = Cut(p, item.row.position, plan.each).n_chunks, n = item.n_heads * (kDim / 4);
    const int64_t column = int64_t{item.first_head} * kDim;
    ChunkPiece* const pieces = pieces_of(p, item);
    if (n_chunks == 1 || (n_chunks <= kClasses && part > 0)) continue;
    if (n_chunks <= kClasses) {
      for (int piece = thread; piece < n; piece += kSinglesWarps * 32) {
        const Running all = merge_piece<1, 1>(pieces + piece, pitch, n_chunks);
        deliver(p.attend, item.row, column + piece * 4, quotients(all.sums, all.total));
      }
      __syncwarp();
      continue;
    }
    for (int first = part * kMergedAtOnce; first < n; first += n_parts * kMergedAtOnce) {  // n is a multiple
      const int piece = first + thread / kClasses;
      const Running all = merge_piece<kClasses, 4>(pieces + piece, pitch, n_chunks);
      if (thread % kClasses == 0) deliver(p.attend, item.row, column + piece * 4, quotients(all.sums, all.total));
    }
  }
}

}  // namespace firstlight::cuda

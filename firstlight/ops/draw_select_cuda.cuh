// SPDX-License-Identifier: Apache-2.0
// Of a row of logits in the hands of a cluster: down to which one a share of a sum reaches, byte by byte.
#pragma once
#include "firstlight/ops/draw_sum_cuda.cuh"

namespace firstlight::cuda {

/// The block's bins out of its lanes', which become zeros.
__device__ __forceinline__ void add_lanes(RowOfCluster& row) {
  row.turn ^= 1;
  constexpr int kEach = kBins * 32 / kDrawThreads;  // lanes of a bin to a thread, its neighbours have the others
  const int bin = static_cast<int>(threadIdx.x) * kEach / 32;
  unsigned long long sum = 0;
  for (int i = 0; i < kEach; ++i) {
    unsigned long long& lane = row.lanes[bin][(static_cast<int>(threadIdx.x) + i * (32 / kEach)) % 32];
    sum += lane;
    lane = 0;
  }
#pragma unroll
  for (int step = 32 / kEach / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (threadIdx.x % (32 / kEach) == 0) row.shared.bins[row.turn][bin] = sum;
}

/// From the largest bin on, the one in which the wanted share ends: in every block the same.
template <class Wanted>
__device__ void choose_bin(RowOfCluster& row, bool is_first, const Wanted& wanted) {
  DrawShared& shared = row.shared;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int bin = kBins - 1 - static_cast<int>(threadIdx.x);
  unsigned long long mine = 0, up_to = 0;
  if (bin >= 0) {
    for (unsigned b = 0; b < kDrawBlocks; ++b) mine += *row.cluster().map_shared_rank(&shared.bins[row.turn][bin], b);
    up_to = mine;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const unsigned long long other = __shfl_up_sync(0xffffffffu, up_to, step);
      if (lane >= step) up_to += other;
    }
    if (lane == 31) shared.of_warps[warp] = up_to;
  }
  __syncthreads();
  if (bin >= 0) {
    unsigned long long total = 0;
    for (int w = 0; w < kBins / 32; ++w) {
      if (w < warp) up_to += shared.of_warps[w];
      total += shared.of_warps[w];
    }
    const uint64_t share = is_first ? wanted(total) : shared.rest;
    __syncwarp();
    if (up_to >= share && up_to - mine < share) {
      shared.bin = bin;
      shared.in_bin = mine;
      shared.next_rest = share - (up_to - mine);
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) shared.rest = shared.next_rest;  // nobody reads the old one any more
  __syncthreads();
}

/// The largest `order` with which the sum of `value` over ids of that order and above reaches `wanted(sum over all)`,
/// 1 to that sum; shared.rest: what of it the ids above leave, shared.in_bin: the sum over ids of just that order.
template <class Value, class Wanted>
__device__ uint32_t select(RowOfCluster& row, const Value& value, const Wanted& wanted) {
  uint32_t prefix = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    row.each([&](int id) {
      const uint32_t order = sampling::order_of(row.logits[id]);
      if (shift < 24 && (order ^ prefix) >> (shift + 8) != 0) return;
      const unsigned long long v = value(id, order);
      if (v != 0) atomicAdd(&row.lanes[order >> shift & 255][threadIdx.x % 32], v);
    });
    __syncthreads();
    add_lanes(row);
    row.cluster().sync();
    choose_bin(row, shift == 24, wanted);
    prefix |= static_cast<uint32_t>(row.shared.bin) << shift;
  }
  return prefix;
}

}  // namespace firstlight::cuda

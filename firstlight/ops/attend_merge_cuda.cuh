// SPDX-License-Identifier: Apache-2.0
// Attention of single rows: a chunk's sums are made of its warps', a row's of its chunks', always in the same order.
#pragma once
#include "firstlight/ops/attend_chunks_cuda.cuh"

namespace firstlight::cuda {

__device__ __forceinline__ void deliver(const AttendParams& p, const RowOnDevice& row, int64_t column, float value) {
  p.out.data[row.row * p.out.stride + column] = value;
  if (p.twin) p.twin[row.row * p.out.cols + column] = __float2bfloat16_rn(value);
  if (p.terms) put_terms(value, p.terms + row.row * p.out.cols + column, kMatvecRows * p.out.cols);
}

/// Shared memory in which a block's warps meet: their sums of a chunk.
template <int kDim>
struct Meeting {
  static constexpr int kStride = kDim + 4;  // heads 2t of lanes t in different banks
  float* sums;                              // [kSinglesWarps][heads][kStride]
  float (*maxima)[kHeadsAtOnce], (*divisors)[kHeadsAtOnce];
  int heads;
  __device__ float& sum(int warp, int head, int i) const { return sums[(warp * heads + head) * kStride + i]; }
};

/// A chunk's sums: those of the block's warps, in order. All threads call, after the warps have put theirs down.
template <int kDim>
__device__ void join_warps(const SinglesParams& p, const Item& item, int chunk, const Meeting<kDim>& meeting) {
  const Partials<kDim> partials(p, item);
  sync_crew();
  for (int at = crew_thread(); at < item.n_heads * kDim; at += kSinglesWarps * 32) {
    const int g = at / kDim, i = at % kDim;
    float top = meeting.maxima[0][g], sum = 0, total = 0;
#pragma unroll
    for (int w = 1; w < kSinglesWarps; ++w) top = fmaxf(top, meeting.maxima[w][g]);
#pragma unroll
    for (int w = 0; w < kSinglesWarps; ++w) {
      const float share = power_of_two(meeting.maxima[w][g] - top);  // warp 0 has a visible key: top is finite
      sum += share * meeting.sum(w, g, i);
      total += share * meeting.divisors[w][g];
    }
    if (item.n_chunks == 1) {
      deliver(p.attend, item.row, int64_t{item.first_head} * kDim + at, sum / total);
    } else {
      partials.sums[int64_t{chunk} * partials.heads * kDim + at] = sum;
      if (i == 0) partials.shares[chunk * partials.heads + g] = make_float2(top, total);
    }
  }
  sync_crew();
}

/// True in the crew that comes last of a row's: all its chunks' sums are there.
__device__ __forceinline__ bool comes_last(const SinglesParams& p, const Item& item) {
  __shared__ bool lasts[2];
  bool& last = lasts[crew_number()];
  if (crew_thread() == 0) {
    unsigned* arrivals = p.arrivals + int64_t{item.index} * p.head_blocks + item.head_block;
    unsigned before;  // what join_warps' barrier has ordered before this thread is seen before its arrival
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;" : "=r"(before) : "l"(arrivals) : "memory");
    last = before + 1 == static_cast<unsigned>(item.n_items);
    if (last) *arrivals = 0;
  }
  sync_crew();
  return last;
}

/// Each chunk's weight in the row's result, and their divisors' sum; a warp a head.
__device__ __forceinline__ void share_out(const float2* of_chunks, int stride, const Item& item, float* shares,
                                          float* totals) {
  const int warp = crew_thread() / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int g = warp; g < item.n_heads; g += kSinglesWarps) {
    float2 each[kMostChunks / 32];
    float top = -INFINITY, total = 0;
#pragma unroll
    for (int k = 0; k < kMostChunks / 32; ++k) {
      const int c = k * 32 + lane;
      each[k] = c < item.n_chunks ? __ldcg(of_chunks + c * stride + g) : make_float2(-INFINITY, 0);
      top = fmaxf(top, each[k].x);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
#pragma unroll
    for (int k = 0; k < kMostChunks / 32; ++k) {
      const float share = power_of_two(each[k].x - top);
      shares[g * kMostChunks + k * 32 + lane] = share;
      total += share * each[k].y;
    }
    total = warp_sum(total);
    if (lane == 0) totals[g] = total;
  }
}

/// A row's result from its chunks' sums, in an order of their own. `scratch`: (kMostChunks + 1) * 8 + 4 * 8 * kDim
/// floats of shared memory. All threads call.
template <int kDim, int kHeads>
__device__ void merge_chunks(const SinglesParams& p, const Item& item, float* scratch) {
  constexpr int kPieces = kHeads * kDim / 128;  // of 4 values, of a lane
  const Partials<kDim> partials(p, item);
  const int warp = crew_thread() / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int n = item.n_heads * kDim;
  float* totals = scratch;
  float* shares = scratch + kHeadsAtOnce;             // [head][chunk]
  float* sums = shares + kHeadsAtOnce * kMostChunks;  // [warp][n]
  // The first chunks' sums are on their way while the shares are computed.
  constexpr int kEarly = 16 / kPieces;
  float4 early[kEarly][kPieces] = {};
  const auto load = [&](int c, float4(&to)[kPieces]) {
#pragma unroll
    for (int k = 0; k < kPieces; ++k) {
      const int at = (k * 32 + lane) * 4;
      if (at < n && c < item.n_chunks)
        to[k] = __ldcg(reinterpret_cast<const float4*>(partials.sums + int64_t{c} * partials.heads * kDim + at));
    }
  };
#pragma unroll
  for (int a = 0; a < kEarly; ++a) load(warp + a * kSinglesWarps, early[a]);
  share_out(partials.shares, partials.heads, item, shares, totals);
  sync_crew();
  float4 sum[kPieces] = {};
  for (int first = warp; first < item.n_chunks; first += kEarly * kSinglesWarps) {
#pragma unroll
    for (int a = 0; a < kEarly; ++a) {
      const int c = first + a * kSinglesWarps;
      if (c >= item.n_chunks) break;
#pragma unroll
      for (int k = 0; k < kPieces; ++k) {
        const int at = (k * 32 + lane) * 4;
        if (at >= n) continue;
        const float share = shares[at / kDim * kMostChunks + c];
        const float4 x = early[a][k];
        sum[k].x += share * x.x, sum[k].y += share * x.y, sum[k].z += share * x.z, sum[k].w += share * x.w;
      }
    }
#pragma unroll
    for (int a = 0; a < kEarly; ++a) load(first + (kEarly + a) * kSinglesWarps, early[a]);
  }
#pragma unroll
  for (int k = 0; k < kPieces; ++k) {
    const int at = (k * 32 + lane) * 4;
    if (at < n) *reinterpret_cast<float4*>(sums + warp * n + at) = sum[k];
  }
  sync_crew();
  for (int at = crew_thread(); at < n; at += kSinglesWarps * 32) {
    float value = sums[at];
#pragma unroll
    for (int w = 1; w < kSinglesWarps; ++w) value += sums[w * n + at];
    deliver(p.attend, item.row, int64_t{item.first_head} * kDim + at, value / totals[at / kDim]);
  }
  sync_crew();
}

}  // namespace firstlight::cuda

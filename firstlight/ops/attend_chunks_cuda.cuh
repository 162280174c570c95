// SPDX-License-Identifier: Apache-2.0
// Attention of single rows: how a row's keys are cut into chunks, and how a chunk's sums and then a row's are made of
// parts, always in the same order. Which block takes which chunks is another question, which no bit depends on.
#pragma once
#include "firstlight/ops/attend_cuda.cuh"
#include "firstlight/ops/cuda_kernel.cuh"

namespace firstlight::cuda {

inline constexpr int kSinglesWarps = 4;

__device__ __forceinline__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// What a block works on: consecutive chunks of one row, for some heads of one group.
struct Item {
  RowOnDevice row;
  int index;       ///< of the row in its set
  int head_block;  ///< of n_head_blocks
  int kv_head, first_head, n_heads;
  int per_chunk;          ///< pages
  int n_chunks, n_items;  ///< of the row
  int begin, end;         ///< pages
};

/// A row's chunks follow from its own length (and the GPU and the model); its items also from the whole batch.
struct Cut {
  int n_pages, per_chunk, n_chunks, per_item, n_items;
  __device__ Cut(int position, int most_chunks, int pages_each) {
    n_pages = position / kPageTokens + 1;
    per_chunk = max(kLeastPages, ceil_div(n_pages, most_chunks));
    n_chunks = ceil_div(n_pages, per_chunk);
    per_item = ceil_div(pages_each, per_chunk);
    n_items = ceil_div(n_chunks, per_item);
  }
};

/// Pages for each block, so that all blocks that the GPU holds have work. A warp's work; the same in all.
__device__ __forceinline__ int pages_each(const SinglesParams& p) {
  int n_pages = 0;
  for (int r = static_cast<int>(threadIdx.x) % 32; r < p.n_rows; r += 32)
    n_pages += p.rows[r].position / kPageTokens + 1;
  n_pages = static_cast<int>(__reduce_add_sync(0xffffffffu, static_cast<unsigned>(n_pages)));
  return max(1, ceil_div(n_pages, max(1, p.n_blocks / n_head_blocks(p.attend))));
}

/// Item `number` of all, rows in order; false if there are fewer. A warp's work.
__device__ __forceinline__ bool find_item(const SinglesParams& p, int each, int number, Item& item) {
  const int lane = static_cast<int>(threadIdx.x) % 32, n_blocks = n_head_blocks(p.attend);
  const int wanted = number / n_blocks;
  for (int first = 0, before = 0; first < p.n_rows; first += 32) {
    const int n = first + lane < p.n_rows ? Cut(p.rows[first + lane].position, p.most_chunks, each).n_items : 0;
    int up_to = n;  // with this row's
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, up_to, step);
      if (lane >= step) up_to += other;
    }
    const int total = __shfl_sync(0xffffffffu, up_to, 31);
    if (wanted >= before + total) {
      before += total;
      continue;
    }
    const int which = __ffs(static_cast<int>(__ballot_sync(0xffffffffu, before + up_to > wanted))) - 1;
    const int at = wanted - before - __shfl_sync(0xffffffffu, up_to - n, which);
    item.index = first + which;
    item.row = p.rows[item.index];
    const Cut cut(item.row.position, p.most_chunks, each);
    item.per_chunk = cut.per_chunk;
    item.n_chunks = cut.n_chunks;
    item.n_items = cut.n_items;
    item.begin = at * cut.per_item * cut.per_chunk;
    item.end = min(cut.n_pages, item.begin + cut.per_item * cut.per_chunk);
    item.head_block = number % n_blocks;
    const int group = p.attend.n_heads / p.attend.kv.n_kv_heads, of_group = ceil_div(group, kHeadsAtOnce);
    const int in_group = item.head_block % of_group * kHeadsAtOnce;
    item.kv_head = item.head_block / of_group;
    item.first_head = item.kv_head * group + in_group;
    item.n_heads = min(kHeadsAtOnce, group - in_group);
    return true;
  }
  return false;
}

/// Partial sums of a chunk, and beside them its heads' maxima and divisors.
template <int kDim>
struct Partials {
  float* sums;
  float2* shares;
  int heads;
  __device__ Partials(const SinglesParams& p, const Item& item) {
    heads = min(kHeadsAtOnce, p.attend.n_heads / p.attend.kv.n_kv_heads);
    const int64_t n_blocks = n_head_blocks(p.attend);
    const int64_t first = (item.index * n_blocks + item.head_block) * p.n_chunks;
    sums = p.partials + first * heads * kDim;
    shares = reinterpret_cast<float2*>(p.partials + p.n_rows * n_blocks * p.n_chunks * heads * kDim) + first * heads;
  }
};

__device__ __forceinline__ void deliver(const AttendParams& p, const RowOnDevice& row, int64_t column, float value) {
  p.out.data[row.row * p.out.stride + column] = value;
  if (p.twin) p.twin[row.row * p.out.cols + column] = __float2bfloat16_rn(value);
}

/// Shared memory in which a block's warps meet: their sums of a chunk.
template <int kDim>
struct Meeting {
  static constexpr int kStride = kDim + 4;  // heads 2t of lanes t in different banks
  float* sums;                              // [kSinglesWarps][heads][kStride]
  float (*maxima)[kHeadsAtOnce];
  float (*divisors)[kHeadsAtOnce];
  int heads;
  __device__ float& sum(int warp, int head, int i) const { return sums[(warp * heads + head) * kStride + i]; }
};

/// A chunk's sums: those of the block's warps, in order. All threads call, after the warps have put theirs down.
template <int kDim>
__device__ void join_warps(const SinglesParams& p, const Item& item, int chunk, const Meeting<kDim>& meeting) {
  const Partials<kDim> partials(p, item);
  __syncthreads();
  for (int at = static_cast<int>(threadIdx.x); at < item.n_heads * kDim; at += kSinglesWarps * 32) {
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
  __syncthreads();
}

/// True in the block that comes last of a row's: all its chunks' sums are there.
__device__ __forceinline__ bool comes_last(const SinglesParams& p, const Item& item) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    unsigned* arrivals = p.arrivals + int64_t{item.index} * n_head_blocks(p.attend) + item.head_block;
    __threadfence();  // what join_warps' barrier has ordered before this thread is seen before its arrival
    last = atomicAdd(arrivals, 1u) + 1 == static_cast<unsigned>(item.n_items);
    if (last) *arrivals = 0;
    __threadfence();
  }
  __syncthreads();
  return last;
}

/// A row's result from its chunks' sums, in an order of their own. `scratch`: (kMostChunks + 1) * 8 + 4 * 8 * kDim
/// floats of shared memory. All threads call.
template <int kDim>
__device__ void merge_chunks(const SinglesParams& p, const Item& item, float* scratch) {
  constexpr int kPieces = kHeadsAtOnce * kDim / 128;  // of 4 values, of a lane
  const Partials<kDim> partials(p, item);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int n = item.n_heads * kDim;
  float* totals = scratch;
  float* shares = scratch + kHeadsAtOnce;             // [head][chunk]
  float* sums = shares + kHeadsAtOnce * kMostChunks;  // [warp][n]
  for (int g = warp; g < item.n_heads; g += kSinglesWarps) {
    float2 each[kMostChunks / 32];
    float top = -INFINITY, total = 0;
#pragma unroll
    for (int k = 0; k < kMostChunks / 32; ++k) {
      const int c = k * 32 + lane;
      each[k] = c < item.n_chunks ? __ldcg(partials.shares + c * partials.heads + g) : make_float2(-INFINITY, 0);
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
  __syncthreads();
  float4 sum[kPieces] = {};
#pragma unroll 4
  for (int c = warp; c < item.n_chunks; c += kSinglesWarps) {
    const float* from = partials.sums + int64_t{c} * partials.heads * kDim;
#pragma unroll
    for (int k = 0; k < kPieces; ++k) {
      const int at = (k * 32 + lane) * 4;
      if (at >= n) continue;
      const float4 x = __ldcg(reinterpret_cast<const float4*>(from + at));
      const float share = shares[at / kDim * kMostChunks + c];
      sum[k].x += share * x.x, sum[k].y += share * x.y, sum[k].z += share * x.z, sum[k].w += share * x.w;
    }
  }
#pragma unroll
  for (int k = 0; k < kPieces; ++k) {
    const int at = (k * 32 + lane) * 4;
    if (at < n) *reinterpret_cast<float4*>(sums + warp * n + at) = sum[k];
  }
  __syncthreads();
  for (int at = static_cast<int>(threadIdx.x); at < n; at += kSinglesWarps * 32) {
    float value = sums[at];
#pragma unroll
    for (int w = 1; w < kSinglesWarps; ++w) value += sums[w * n + at];
    deliver(p.attend, item.row, int64_t{item.first_head} * kDim + at, value / totals[at / kDim]);
  }
  __syncthreads();
}

}  // namespace firstlight::cuda

// SPDX-License-Identifier: Apache-2.0
// Attention of single rows, bound by reading keys and values: each is read once for all heads of its group (up to 8).
// Of every page a warp takes 16 slots, through a ring of its own in shared memory, so that no warp waits for another
// but at a chunk's end. Scores are q [16 heads, of which 8 are zero] times keys, and lie in registers as values [16
// dimensions] times weights wants them. q and the weights go in as two bf16 terms each, so that nothing but the pages'
// own rounding is lost.
#pragma once
#include "firstlight/ops/attend_keys_cuda.cuh"

namespace firstlight::cuda {

/// Of head lane / 4: keys 8 tile + 2 (lane % 4) + {0, 1}.
template <int kDim>
__device__ __forceinline__ void score(const Query<kDim>& q, uint32_t keys, float (&scores)[2][2]) {
  float low[2][2] = {};
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) scores[tile][0] = scores[tile][1] = 0;
#pragma unroll
  for (int s = 0; s < kDim / 16; ++s) {
    uint32_t k[4];
    load_matrices(k, matrix_at<kDim>(keys, s));
    mma_upper(scores[0], q.high[s][0], q.high[s][1], k[0], k[1]);
    mma_upper(scores[1], q.high[s][0], q.high[s][1], k[2], k[3]);
    mma_upper(low[0], q.low[s][0], q.low[s][1], k[0], k[1]);
    mma_upper(low[1], q.low[s][0], q.low[s][1], k[2], k[3]);
  }
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) scores[tile][0] += low[tile][0], scores[tile][1] += low[tile][1];
}

/// Scores become weights, sums shrink to the new maximum; `n_slots`: of these 16 and on, how many are visible.
template <int kDim>
__device__ __forceinline__ void weigh(float scale, int n_slots, float (&scores)[2][2], Sums<kDim>& sums) {
  const int first = static_cast<int>(threadIdx.x) % 4 * 2;
  float top = -INFINITY;
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      scores[tile][i] = tile * 8 + first + i < n_slots ? scores[tile][i] * scale : -INFINITY;
      top = fmaxf(top, scores[tile][i]);
    }
  }
  top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
  top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
  top = fmaxf(top, sums.maximum);
  const float base = top == -INFINITY ? 0 : top;  // a warp without a visible key so far
  const float shrink = power_of_two(sums.maximum - base);
  sums.maximum = top;
  sums.divisor *= shrink;
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
    for (int i = 0; i < 2; ++i) sums.divisor += scores[tile][i] = power_of_two(scores[tile][i] - base);
  }
  if (__all_sync(0xffffffffu, shrink == 1)) return;
  const float even = __shfl_sync(0xffffffffu, shrink, first * 4), odd = __shfl_sync(0xffffffffu, shrink, first * 4 + 4);
#pragma unroll
  for (int m = 0; m < kDim / 16; ++m) {
    sums.of[m][0] *= even, sums.of[m][1] *= odd, sums.of[m][2] *= even, sums.of[m][3] *= odd;
  }
}

template <int kDim>
__device__ __forceinline__ void mix(const float (&weights)[2][2], uint32_t values, Sums<kDim>& sums) {
  uint32_t high[2], low[2];
  split(weights[0][0], weights[0][1], high[0], low[0]);
  split(weights[1][0], weights[1][1], high[1], low[1]);
#pragma unroll
  for (int m = 0; m < kDim / 16; ++m) {
    uint32_t v[4];
    load_matrices_transposed(v, matrix_at<kDim>(values, m));
    mma(sums.of[m], v[0], v[1], v[2], v[3], high[0], high[1]);
    mma(sums.of[m], v[0], v[1], v[2], v[3], low[0], low[1]);
  }
}

/// The warp's sums of a chunk to where the warps meet; the next chunk begins anew.
template <int kDim>
__device__ __forceinline__ void put_down(const Meeting<kDim>& meeting, Sums<kDim>& sums) {
  const int warp = crew_thread() / 32, lane = static_cast<int>(threadIdx.x) % 32;
  float divisor = sums.divisor;
  divisor += __shfl_xor_sync(0xffffffffu, divisor, 1);
  divisor += __shfl_xor_sync(0xffffffffu, divisor, 2);
  if (lane % 4 == 0) meeting.maxima[warp][lane / 4] = sums.maximum, meeting.divisors[warp][lane / 4] = divisor;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int head = lane % 4 * 2 + i % 2;
    if (head >= meeting.heads) continue;
#pragma unroll
    for (int m = 0; m < kDim / 16; ++m) meeting.sum(warp, head, m * 16 + i / 2 * 8 + lane / 4) = sums.of[m][i];
  }
  sums = Sums<kDim>{};
}

/// `ready` returns when what this pass computes is there: q, and all keys and values. Those of earlier passes are asked
/// for before.
template <int kDim, int kStages, class Ready>
__device__ void attend_item(const SinglesParams& p, const Item& item, uint32_t shared, const Meeting<kDim>& meeting,
                            const Ready& ready) {
  const int slot = crew_thread() / 32 * 16, head = static_cast<int>(threadIdx.x) % 32 / 4;
  KeyRing<kDim, kStages> ring(p, item, shared);
  const int n_olds = p.olds_hold ? max(0, item.row.position + 1 - static_cast<int>(kTiledRows)) / kPageTokens : 0;
  for (int stage = 0; stage < kStages; ++stage) {
    const int page = item.begin + stage;
    if (page < item.end) {
      const std::byte* keys = ring.keys_of(page);
      if (page >= n_olds) ready();
      ring.fetch(keys, page, ring.keys_at(stage));
      copy_async_commit();
      ring.fetch(keys + ring.to_values, page, ring.values_at(stage));
    } else {
      copy_async_commit();
    }
    copy_async_commit();
  }
  ready();
  Query<kDim> q;
  load_query<kDim>(p.attend.q.data + item.row.row * p.attend.q.stride + (int64_t{item.first_head} + head) * kDim,
                   head < item.n_heads, q);
  Sums<kDim> sums;
  int chunk = quotient(item.begin, item.per_chunk), chunk_end = item.begin + item.per_chunk;
  for (int page = item.begin, stage = 0; page < item.end; ++page) {
    const int ahead = page + kStages;
    const std::byte* next = ahead < item.end ? ring.keys_of(ahead) : nullptr;
    float scores[2][2];
    copy_async_wait<2 * kStages - 1>();
    __syncwarp();
    score<kDim>(q, ring.keys_at(stage), scores);
    __syncwarp();
    if (next) ring.fetch(next, ahead, ring.keys_at(stage));
    copy_async_commit();
    weigh<kDim>(p.attend.scale, ring.n_keys - page * kPageTokens - slot, scores, sums);
    copy_async_wait<2 * kStages - 1>();
    __syncwarp();
    mix<kDim>(scores, ring.values_at(stage), sums);
    __syncwarp();
    if (next) ring.fetch(next + ring.to_values, ahead, ring.values_at(stage));
    copy_async_commit();
    stage = stage + 1 == kStages ? 0 : stage + 1;
    if (page + 1 == chunk_end || page + 1 == item.end) {
      put_down<kDim>(meeting, sums);
      join_warps<kDim>(p, item, chunk++, meeting);
      chunk_end += item.per_chunk;
    }
  }
}

}  // namespace firstlight::cuda

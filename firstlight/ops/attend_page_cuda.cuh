// SPDX-License-Identifier: Apache-2.0
// Attention of single rows: what a warp makes of its 16 slots of a page. Scores are q [16 heads, of which 8 are zero]
// times keys, and lie in registers as values [16 dimensions] times weights wants them. q and the weights go in as two
// bf16 terms each, so that nothing but the pages' own rounding is lost.
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
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
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

}  // namespace firstlight::cuda

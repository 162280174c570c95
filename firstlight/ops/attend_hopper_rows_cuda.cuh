// SPDX-License-Identifier: Apache-2.0
// What a warpgroup of Hopper's attention has of 64 rows of a head, in registers: queries, scores, weights and sums.
#pragma once
#include "firstlight/ops/attend_hopper_pages_cuda.cuh"
#include "firstlight/ops/cuda_kernel.cuh"
#include "firstlight/ops/cuda_ptx.cuh"
#include "firstlight/ops/wgmma_registers_cuda.cuh"

namespace firstlight::cuda {

/// A warpgroup: 64 rows of one head, kPages pages at a time. Of lane 4 g + t of warp w: rows 16 w + g and 8 below.
template <int kDim>
struct Rows {
  static constexpr float kLeast = -3.4e38f;  // a number, so that a row which has seen no key yet makes no NaN
  uint32_t q[kDim / 16][4];
  float sums[kDim / 2] = {};
  float scores[kPages * 32];
  uint32_t weights[kPages * 4][4];
  float maxima[2] = {kLeast, kLeast}, divisors[2] = {}, shrinks[2];

  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ __forceinline__ static int first_row() {
    return static_cast<int>(threadIdx.x) % kConsumers / 32 * 16 + lane() / 4;
  }

  /// The rows as numbers, as `sums` lie.
  __device__ __forceinline__ static void load_numbers(const Matrix<const float>& from, const TileOnDevice& tile,
                                                      int head, float (&x)[kDim / 2]) {
    const int n_more = tile.n_rows - first_row();
    const float* const first =
        from.data + (int64_t{tile.row} + first_row()) * from.stride + head * kDim + lane() % 4 * 2;
#pragma unroll
    for (int i = 0; i < kDim / 4; ++i) {
      const int further = i % 2 * 8;
      float2 pair = make_float2(0, 0);
      if (further < n_more) pair = *reinterpret_cast<const float2*>(first + further * from.stride + i / 2 * 8);
      x[2 * i] = pair.x, x[2 * i + 1] = pair.y;
    }
  }
  __device__ __forceinline__ void take_query(const float (&x)[kDim / 2]) {
#pragma unroll
    for (int i = 0; i < kDim / 4; ++i) q[i / 4][i % 4] = pack(x[2 * i], x[2 * i + 1]);
  }

  /// scores = q keysᵀ, under way; the group's.
  __device__ __forceinline__ void start_scores(uint32_t keys) {
#pragma unroll
    for (int s = 0; s < kDim / 16; ++s)
      wgmma<false>(scores, q[s], matrix_in_shared(keys + s / 4 * kBoxBytes + s % 4 * 32), s > 0);
  }
  /// sums += weights values, under way.
  __device__ __forceinline__ void start_mixing(uint32_t values) {
#pragma unroll
    for (int s = 0; s < kPages * kPageTokens / 16; ++s)
      wgmma<true>(sums, weights[s], columns_in_shared(values + s * 16 * 128, kBoxBytes), true);
  }

  /// Scores become weights, as numbers; visible[half]: of a page's keys, for first_row() + 8 half.
  __device__ __forceinline__ void weigh(float scale, const int (&visible)[kPages][2]) {
    bool all = true;
#pragma unroll
    for (int i = 0; i < 2 * kPages; ++i) all = all && visible[i / 2][i % 2] >= kPageTokens;
    if (__any_sync(0xffffffffu, !all)) {
      const int column = lane() % 4 * 2;
#pragma unroll
      for (int i = 0; i < kPages * 32; ++i) {
        if (i % 32 / 4 * 8 + column + i % 2 >= visible[i / 32][i % 4 / 2]) scores[i] = -INFINITY;
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float top = maxima[half];
#pragma unroll
      for (int i = 0; i < kPages * 32; ++i) {
        if (i % 4 / 2 == half) top = fmaxf(top, scores[i]);
      }
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
      shrinks[half] = power_of_two((maxima[half] - top) * scale);
      maxima[half] = top;
      const float base = top * scale;
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kPages * 32; ++i) {
        float& s = scores[i];
        if (i % 4 / 2 == half) sum += s = power_of_two(fmaf(s, scale, -base));
      }
      divisors[half] = divisors[half] * shrinks[half] + sum;
    }
  }
  /// What was mixed so far under the new maxima; and the weights as the operand that they already lie as.
  __device__ __forceinline__ void take_weights() {
    if (__any_sync(0xffffffffu, shrinks[0] != 1 || shrinks[1] != 1)) {
#pragma unroll
      for (int i = 0; i < kDim / 2; ++i) sums[i] *= shrinks[i % 4 / 2];
    }
#pragma unroll
    for (int s = 0; s < kPages * 4; ++s) {
#pragma unroll
      for (int i = 0; i < 4; ++i) weights[s][i] = pack(scores[8 * s + 2 * i], scores[8 * s + 2 * i + 1]);
    }
  }

  /// Where the results of first_row() + 8 half will be; null: the tile has no such row.
  __device__ __forceinline__ static float* result(const AttendParams& p, const TileOnDevice& tile, int head, int half) {
    const int within = first_row() + half * 8;
    if (within >= tile.n_rows) return nullptr;
    return p.out.data + (int64_t{tile.row} + within) * p.out.stride + head * kDim + lane() % 4 * 2;
  }
  /// `means`: of the head's values, which lack them; or null.
  __device__ __forceinline__ void store(const AttendParams& p, const TileOnDevice& tile, int head,
                                        const float* means) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float divisor = divisors[half];
      divisor += __shfl_xor_sync(0xffffffffu, divisor, 1);
      divisor += __shfl_xor_sync(0xffffffffu, divisor, 2);
      float* const to = result(p, tile, head, half);
      if (!to) continue;
      const float scale = 1 / divisor;
      const int64_t row = int64_t{tile.row} + first_row() + half * 8;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        const int at = n * 8 + lane() % 4 * 2;
        const float2 mean = means ? __ldg(reinterpret_cast<const float2*>(means + at)) : make_float2(0, 0);
        const float a = sums[4 * n + 2 * half] * scale + mean.x, b = sums[4 * n + 2 * half + 1] * scale + mean.y;
        *reinterpret_cast<float2*>(to + n * 8) = make_float2(a, b);
        if (p.twin) *reinterpret_cast<uint32_t*>(p.twin + row * p.out.cols + head * kDim + at) = pack(a, b);
      }
    }
  }
};

}  // namespace firstlight::cuda

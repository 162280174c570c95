// SPDX-License-Identifier: Apache-2.0
// Sums of Hopper's attention that are put aside where the results will be, and come back: over exact pages they are not
// rotated, over codes they are.
#pragma once
#include "firstlight/ops/attend_hopper_rows_cuda.cuh"

namespace firstlight::cuda {

template <int kDim>
struct Parked {
  const AttendParams& p;
  const TileOnDevice& tile;
  const int head;
  float maxima[2], divisors[2];

  __device__ __forceinline__ void put(const Rows<kDim>& rows, bool stores) {
#pragma unroll
    for (int half = 0; half < 2; ++half) maxima[half] = rows.maxima[half], divisors[half] = rows.divisors[half];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float* to = rows.result(p, tile, head, half);
      if (!to || !stores) continue;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n)
        *reinterpret_cast<float2*>(to + n * 8) =
            make_float2(rows.sums[4 * n + 2 * half], rows.sums[4 * n + 2 * half + 1]);
    }
  }
  /// What other rows begin with.
  __device__ __forceinline__ void begin(Rows<kDim>& rows) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) rows.maxima[half] = maxima[half], rows.divisors[half] = divisors[half];
  }
  /// Under their maxima of now.
  __device__ __forceinline__ void add_to(Rows<kDim>& rows) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float shrink = power_of_two((maxima[half] - rows.maxima[half]) * p.scale);
      const float* from = rows.result(p, tile, head, half);
      if (!from) continue;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        const float2 there = *reinterpret_cast<const float2*>(from + n * 8);
        float* const sums = rows.sums + 4 * n + 2 * half;
        sums[0] = fmaf(there.x, shrink, sums[0]), sums[1] = fmaf(there.y, shrink, sums[1]);
      }
    }
  }
};

}  // namespace firstlight::cuda

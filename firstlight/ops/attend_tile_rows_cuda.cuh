// SPDX-License-Identifier: Apache-2.0
// What attention of a prompt by tensor cores does alike over bf16 pages and over codes: a warp's 16 rows, their scores
// against a page's keys, and its values mixed by their weights.
#pragma once
#include <cmath>
#include <cstdint>

#include "firstlight/ops/cuda_kernel.cuh"
#include "firstlight/ops/cuda_ptx.cuh"

namespace firstlight::cuda {

/// What a warp's 16 rows have so far: rows lane / 4 and 8 below.
template <int kDim>
struct TileRows {
  uint32_t q[kDim / 16][4];
  float sums[kDim / 8][4] = {};
  float maxima[2] = {-INFINITY, -INFINITY}, divisors[2] = {};
};

/// Products of the rows with the 64 keys of a page; at(slot, piece) is where in shared memory 8 numbers of a key lie.
template <int kDim, class At>
__device__ __forceinline__ void score(int lane, const TileRows<kDim>& rows, const At& at, float (&scores)[8][4]) {
  const int slot = lane / 16 * 8 + lane % 8, piece = lane / 8 % 2;
#pragma unroll
  for (int n = 0; n < 8; ++n) scores[n][0] = scores[n][1] = scores[n][2] = scores[n][3] = 0;
#pragma unroll
  for (int s = 0; s < kDim / 16; ++s) {
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
      uint32_t b[4];
      load_matrices(b, at(n * 8 + slot, s * 2 + piece));
      mma(scores[n], rows.q[s][0], rows.q[s][1], rows.q[s][2], rows.q[s][3], b[0], b[1]);
      mma(scores[n + 1], rows.q[s][0], rows.q[s][1], rows.q[s][2], rows.q[s][3], b[2], b[3]);
    }
  }
}

/// Adds the page's values, each by its weight, to the rows' sums. Scores lie as the operand does (Dao,
/// FlashAttention-2).
template <int kDim, class At>
__device__ __forceinline__ void mix(int lane, const float (&weights)[8][4], const At& at, TileRows<kDim>& rows) {
  const int slot = lane % 16, piece = lane / 16;
#pragma unroll
  for (int s = 0; s < 4; ++s) {
    const uint32_t a0 = pack(weights[2 * s][0], weights[2 * s][1]), a1 = pack(weights[2 * s][2], weights[2 * s][3]),
                   a2 = pack(weights[2 * s + 1][0], weights[2 * s + 1][1]),
                   a3 = pack(weights[2 * s + 1][2], weights[2 * s + 1][3]);
#pragma unroll
    for (int n = 0; n < kDim / 8; n += 2) {
      uint32_t b[4];
      load_matrices_transposed(b, at(s * 16 + slot, n + piece));
      mma(rows.sums[n], a0, a1, a2, a3, b[0], b[1]);
      mma(rows.sums[n + 1], a0, a1, a2, a3, b[2], b[3]);
    }
  }
}

}  // namespace firstlight::cuda

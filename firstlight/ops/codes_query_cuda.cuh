// SPDX-License-Identifier: Apache-2.0
// Queries as attention of single rows over codes multiplies them. A query is made ready once, by the kernel that turns
// it: each of a row's parts would take 1 us for it before its first product.
#pragma once
#include "firstlight/ops/codes_cuda.cuh"
#include "firstlight/ops/codes_warp_cuda.cuh"
#include "firstlight/ops/cuda_kernel.cuh"

namespace firstlight::cuda {

/// Those of a row's block of heads. What belongs to heads that the block does not have may be anything.
template <int kDim>
struct alignas(16) ReadyQueries {
  int8_t fixed[kHeadsAtOnce][2 * kDim];  ///< rotated, of 15 bits; of 4 dimensions: high bytes, then low ones
  uint4 exact[kDim / 16][32];            ///< in two bf16 terms: for each 16 dimensions a lane's words of mma()
  float units[kHeadsAtOnce];             ///< what 1 of `fixed` is worth
};

/// Which of a row's blocks of heads has a head, and as which.
struct HeadPlace {
  int head_block, in_block;
  __device__ __forceinline__ HeadPlace(int head, int group) {
    const int kv_head = head / group, in_group = head % group;
    head_block = kv_head * ((group + kHeadsAtOnce - 1) / kHeadsAtOnce) + in_group / kHeadsAtOnce;
    in_block = in_group % kHeadsAtOnce;
  }
};

/// A warp's work: x, coordinate 32 j + lane in register j, is head `g`'s; `flips`: of its keys. Destroys x.
template <int kDim>
__device__ __forceinline__ void make_ready(uint32_t flips, int g, float (&x)[kDim / 32], ReadyQueries<kDim>& to) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int j = 0; j < kDim / 32; ++j) {
    auto* terms = reinterpret_cast<__nv_bfloat16*>(&to.exact[2 * j + lane / 4 % 2][4 * g + lane / 8]);
    put_terms(x[j], terms + lane % 4 / 2 * 4 + lane % 2, 2);
  }
  rotate<kDim>(flips, x);
  int integers[kDim / 32];
  const float unit = fix_query<kDim>(x, integers);
#pragma unroll
  for (int j = 0; j < kDim / 32; ++j) {
    const int high = (integers[j] + 64) >> 7;
    int8_t* at = &to.fixed[g][32 * j * 2 + lane / 4 * 8 + lane % 4];
    at[0] = static_cast<int8_t>(high);
    at[4] = static_cast<int8_t>(integers[j] - 128 * high);
  }
  if (lane == 0) to.units[g] = unit;
}

}  // namespace firstlight::cuda

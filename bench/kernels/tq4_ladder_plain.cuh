// SPDX-License-Identifier: Apache-2.0
// Steps 1 and 2: a warp a key, from the format's description: a table of levels, f32. Step 1 has a warp for each query
// head, which reads all codes of the group anew; in step 2 the group's four heads share what is read and looked up.
#pragma once
#include "bench/kernels/tq4_ladder.cuh"

namespace firstlight::ladder {

/// kHeads heads of a group a warp: 1 or kGroup.
template <int kHeads>
__global__ void __launch_bounds__(kBlockWarps * 32) plain_kernel(Params p) {
  __shared__ float levels[16];
  if (threadIdx.x < 16) levels[threadIdx.x] = static_cast<float>(tq::level<4>(threadIdx.x));
  __syncthreads();
  constexpr int kTurns = kGroup / kHeads;  // neighbouring warps: the same pages for other heads
  const int lane = lane_id(), first = warp_in_grid() % kTurns * kHeads;
  Part part;
  if (!part.find(p, warp_in_grid() / kTurns)) return;
  float q[kHeads][4], sums[kHeads][4] = {}, maximum[kHeads], divisor[kHeads] = {};
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    const float4 x = reinterpret_cast<const float4*>(part.query(p) + (first + h) * kDim)[lane];
    q[h][0] = x.x, q[h][1] = x.y, q[h][2] = x.z, q[h][3] = x.w;
    maximum[h] = -INFINITY;
  }
  for (int i = part.part; i < p.n_pages; i += p.n_parts) {
    const uint8_t* page = part.page(p, part.number(p, i));
#pragma unroll(kHeads == 1 ? 4 : 2)  // four spill
    for (int slot = 0; slot < tq::kPageSlots; ++slot) {
      const uint32_t key = reinterpret_cast<const uint16_t*>(page + slot * kShape.key_bytes())[lane];
      const uint8_t* quad = page + kShape.values_at() + slot / tq::kQuad * kShape.quad_bytes();
      const uint2 value = reinterpret_cast<const uint2*>(quad)[lane];
      const int shift = slot % tq::kQuad * 4;
      float k[4], v[4];
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        k[c] = levels[key >> (4 * c) & 15u];
        v[c] = levels[(c < 2 ? value.x : value.y) >> (16 * (c % 2) + shift) & 15u];
      }
      const float key_scale = scale_at(page, 0, slot) * p.scale, value_scale = scale_at(page, 1, slot);
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        float score = q[h][0] * k[0] + q[h][1] * k[1] + q[h][2] * k[2] + q[h][3] * k[3];
        for (int step = 16; step > 0; step /= 2) score += __shfl_xor_sync(kAll, score, step);
        score *= key_scale;
        const float top = fmaxf(maximum[h], score), shrink = exp2f(maximum[h] - top), weight = exp2f(score - top);
        maximum[h] = top;
        divisor[h] = divisor[h] * shrink + weight;
#pragma unroll
        for (int c = 0; c < 4; ++c) sums[h][c] = sums[h][c] * shrink + weight * value_scale * v[c];
      }
    }
  }
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    Piece& piece = part.piece(p, first + h);
    reinterpret_cast<float4*>(piece.sums)[lane] = make_float4(sums[h][0], sums[h][1], sums[h][2], sums[h][3]);
    if (lane == 0) piece.maximum = maximum[h], piece.divisor = divisor[h];
  }
}

}  // namespace firstlight::ladder

// SPDX-License-Identifier: Apache-2.0
// Step 3: whole numbers. A lane has two keys of a page, so that a score needs no sum over lanes; four codes at a time
// meet four bytes of a query (dp4a), and four tokens' values of a channel four weights, which are whole numbers of a
// page's largest, too. The softmax is a page's, not a key's.
#pragma once
#include "bench/kernels/tq4_ladder_bytes.cuh"

namespace firstlight::ladder {

/// Of a warp.
struct DotShared {
  WholeQuery query;
  int4 q[kDim / 4][2];                  ///< [four coordinates][high, low]: a word of each head
  int4 weights[tq::kPageSlots / 4][2];  ///< [four tokens][high, low]: the same

  __device__ void make(const Params& p, const Part& part) {
    query.make(p, part);
    for (int i = lane_id(); i < kDim / 4 * kGroup; i += 32) {
      const int word = i / kGroup, head = i % kGroup;
      reinterpret_cast<int*>(&q[word][0])[head] = reinterpret_cast<const int*>(query.high[head])[word];
      reinterpret_cast<int*>(&q[word][1])[head] = reinterpret_cast<const int*>(query.low[head])[word];
    }
    __syncwarp();
  }
};

struct DotSums {
  float of[kGroup][4] = {};  ///< of the lane's four channels
  float maximum[kGroup] = {-1e30f, -1e30f, -1e30f, -1e30f}, divisor[kGroup] = {};
};

/// sum[head] += bytes · the heads' words.
__device__ __forceinline__ void add_products(uint32_t bytes, int4 words, int (&sum)[kGroup]) {
  sum[0] = __dp4a(static_cast<int>(bytes), words.x, sum[0]);
  sum[1] = __dp4a(static_cast<int>(bytes), words.y, sum[1]);
  sum[2] = __dp4a(static_cast<int>(bytes), words.z, sum[2]);
  sum[3] = __dp4a(static_cast<int>(bytes), words.w, sum[3]);
}

/// score[i][head] of keys lane and 32 + lane.
__device__ __forceinline__ void dot_scores(const uint8_t* page, const DotShared& shared, float (&score)[2][kGroup]) {
  int high[2][kGroup] = {}, low[2][kGroup] = {};
#pragma unroll 1
  for (int piece = 0; piece < 4; ++piece) {
    uint4 codes[2];
    for (int i = 0; i < 2; ++i)
      codes[i] = reinterpret_cast<const uint4*>(page + (32 * i + lane_id()) * kShape.key_bytes())[piece];
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const int4(*q)[2] = shared.q + 8 * piece + 2 * w;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const Bytes key = expand(w == 0 ? codes[i].x : w == 1 ? codes[i].y : w == 2 ? codes[i].z : codes[i].w);
        add_products(key.low, q[0][0], high[i]), add_products(key.low, q[0][1], low[i]);
        add_products(key.high, q[1][0], high[i]), add_products(key.high, q[1][1], low[i]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float scale = scale_at(page, 0, 32 * i + lane_id());
#pragma unroll
    for (int h = 0; h < kGroup; ++h)
      score[i][h] =
          static_cast<float>(128 * high[i][h] + low[i][h] - shared.query.offset[h]) * (shared.query.unit[h] * scale);
  }
}

/// Scores become weights in shared memory; unit[h]: what 1 is worth, offset[h]: 64 times their sum.
__device__ __forceinline__ void dot_weights(const uint8_t* page, const float (&score)[2][kGroup], DotShared& shared,
                                            DotSums& sums, float (&unit)[kGroup], int (&offset)[kGroup]) {
  const int lane = lane_id();
#pragma unroll
  for (int h = 0; h < kGroup; ++h) {
    float top = fmaxf(score[0][h], score[1][h]), most = 1e-30f, weight[2];
    for (int step = 16; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(kAll, top, step));
    top = fmaxf(top, sums.maximum[h]);
    const float shrink = exp2f(sums.maximum[h] - top);
    sums.maximum[h] = top, sums.divisor[h] *= shrink;
    for (float& each : sums.of[h]) each *= shrink;
    for (int i = 0; i < 2; ++i) {
      weight[i] = exp2f(score[i][h] - top);
      sums.divisor[h] += weight[i];
      most = fmaxf(most, weight[i] *= scale_at(page, 1, 32 * i + lane));
    }
    for (int step = 16; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(kAll, most, step));
    unit[h] = most / 16256;
    int total = 0;
    for (int i = 0; i < 2; ++i) {
      const int whole = __float2int_rn(weight[i] * (16256 / most)), upper = (whole + 64) >> 7, quad = 8 * i + lane / 4;
      reinterpret_cast<int8_t*>(&shared.weights[quad][0])[4 * h + lane % 4] = static_cast<int8_t>(upper);
      reinterpret_cast<int8_t*>(&shared.weights[quad][1])[4 * h + lane % 4] = static_cast<int8_t>(whole - 128 * upper);
      total += whole;
    }
    offset[h] = 64 * __reduce_add_sync(kAll, total);
  }
  __syncwarp();
}

__device__ __forceinline__ void dot_values(const uint8_t* page, const DotShared& shared, const float (&unit)[kGroup],
                                           const int (&offset)[kGroup], DotSums& sums) {
  int high[4][kGroup] = {}, low[4][kGroup] = {};
#pragma unroll 4
  for (int quad = 0; quad < tq::kPageSlots / tq::kQuad; ++quad) {
    const uint8_t* codes = page + kShape.values_at() + quad * kShape.quad_bytes();
    const uint2 two = reinterpret_cast<const uint2*>(codes)[lane_id()];
    const Bytes x = expand(two.x), y = expand(two.y);
    const uint32_t channels[4] = {x.low, x.high, y.low, y.high};
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      add_products(channels[c], shared.weights[quad][0], high[c]);
      add_products(channels[c], shared.weights[quad][1], low[c]);
    }
  }
#pragma unroll
  for (int h = 0; h < kGroup; ++h) {
    for (int c = 0; c < 4; ++c) sums.of[h][c] += static_cast<float>(128 * high[c][h] + low[c][h] - offset[h]) * unit[h];
  }
  __syncwarp();  // weights have been read
}

__global__ static void __launch_bounds__(kBlockWarps * 32) dot_kernel(Params p) {
  __shared__ DotShared all[kBlockWarps];
  DotShared& shared = all[threadIdx.x / 32];
  Part part;
  if (!part.find(p, warp_in_grid())) return;
  shared.make(p, part);
  DotSums sums;
  for (int i = part.part; i < p.n_pages; i += p.n_parts) {
    const uint8_t* page = part.page(p, part.number(p, i));
    float score[2][kGroup], unit[kGroup];
    int offset[kGroup];
    dot_scores(page, shared, score);
    dot_weights(page, score, shared, sums, unit, offset);
    dot_values(page, shared, unit, offset, sums);
  }
#pragma unroll
  for (int h = 0; h < kGroup; ++h) {
    Piece& piece = part.piece(p, h);
    for (int step = 16; step > 0; step /= 2) sums.divisor[h] += __shfl_xor_sync(kAll, sums.divisor[h], step);
    reinterpret_cast<float4*>(piece.sums)[lane_id()] =
        make_float4(sums.of[h][0], sums.of[h][1], sums.of[h][2], sums.of[h][3]);
    if (lane_id() == 0) piece.maximum = sums.maximum[h], piece.divisor = sums.divisor[h];
  }
}

}  // namespace firstlight::ladder

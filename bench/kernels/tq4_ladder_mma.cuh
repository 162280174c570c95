// SPDX-License-Identifier: Apache-2.0
// Steps 4 and 5: 8-bit tensor cores (m16n8k32) on codes expanded in registers. Keys, or channels of values, are rows of
// the first operand; columns of the second are the four heads' high and low bytes side by side, so that lane 4 g + t
// has both parts of head t's results. In step 4 lanes load their words from global memory; in step 5 whole pages come
// by bulk copies into a ring of two slots, each warp's own.
#pragma once
#include "bench/kernels/tq4_ladder_bytes.cuh"
#include "bench/kernels/tq4_ladder_ring.cuh"

namespace firstlight::ladder {

__device__ __forceinline__ uint32_t word_of(const uint4& x, int i) {
  return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w;
}
/// The largest of a head's, over the lanes that have it.
__device__ __forceinline__ float largest_of_head(float x) {
  for (int step = 4; step < 32; step *= 2) x = fmaxf(x, __shfl_xor_sync(kAll, x, step));
  return x;
}

struct MmaQuery {
  uint32_t b[4][2];
  float unit;  ///< of the lane's head
  int offset;
  __device__ explicit MmaQuery(const WholeQuery& q) {
    const int g = lane_id() / 4, t = lane_id() % 4;
    const int8_t* head = (g % 2 == 0 ? q.high : q.low)[g / 2];
    for (int s = 0; s < 4; ++s) {
      b[s][0] = *reinterpret_cast<const uint32_t*>(head + 32 * t + 8 * s);
      b[s][1] = *reinterpret_cast<const uint32_t*>(head + 32 * t + 8 * s + 4);
    }
    unit = q.unit[t], offset = q.offset[t];
  }
};

struct MmaSums {
  float of[8][2] = {};  ///< of channels 64 (i / 4) + 8 g + 2 (i % 4) and the next one
  float maximum = -1e30f, divisor = 0;
};

/// score[2 tile + e] of key 16 tile + 2 g + e and head t.
__device__ __forceinline__ void mma_scores(const uint8_t* page, const MmaQuery& q, float (&score)[8]) {
  const int g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
  for (int tile = 0; tile < 4; ++tile) {
    const auto* key = reinterpret_cast<const uint4*>(page + (16 * tile + 2 * g) * kShape.key_bytes()) + t;
    const uint4 first = key[0], second = key[kShape.key_bytes() / 16];
    int c[4] = {};
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      const Bytes x = expand(word_of(first, s)), y = expand(word_of(second, s));
      mma<true>(c, {x.low, y.low, x.high, y.high}, q.b[s][0], q.b[s][1], c);
    }
    for (int e = 0; e < 2; ++e) {
      const float unit = q.unit * scale_at(page, 0, 16 * tile + 2 * g + e);
      score[2 * tile + e] = static_cast<float>(128 * c[2 * e] + c[2 * e + 1] - q.offset) * unit;
    }
  }
}

/// Scores become weights of 16 bits as second operands: a matrix instruction turns rows (keys) into columns.
__device__ __forceinline__ float mma_weights(const uint8_t* page, float (&score)[8], MmaSums& sums, uint32_t (&b)[4]) {
  const int g = lane_id() / 4;
  float top = score[0], most = 1e-30f;
  for (int i = 1; i < 8; ++i) top = fmaxf(top, score[i]);
  top = fmaxf(largest_of_head(top), sums.maximum);
  const float shrink = exp2f(sums.maximum - top);
  sums.maximum = top, sums.divisor *= shrink;
#pragma unroll
  for (auto& each : sums.of) each[0] *= shrink, each[1] *= shrink;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float weight = exp2f(score[i] - top);
    sums.divisor += weight;
    score[i] = weight * scale_at(page, 1, 16 * (i / 2) + 2 * g + i % 2);
    most = fmaxf(most, score[i]);
  }
  most = largest_of_head(most);
  const float inverse = 65535 / most;
#pragma unroll
  for (int tile = 0; tile < 4; ++tile) {
    const uint32_t first = __float2uint_rn(score[2 * tile] * inverse),
                   second = __float2uint_rn(score[2 * tile + 1] * inverse), rows = prmt(first, second, 0x4051);
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(b[tile]) : "r"(rows));
  }
  return most / 65535;
}

/// What is returned depends on every word that was read, and is no kNever: 25 bits and a sign.
__device__ __forceinline__ int mma_values(const uint8_t* page, const uint32_t (&b)[4], float unit, MmaSums& sums) {
  const int g = lane_id() / 4, t = lane_id() % 4;
  constexpr uint32_t kOffsets = 0xc0c0c0c0u;  // four times -64
  int base[4] = {};
  mma<false>(base, {kOffsets, kOffsets, kOffsets, kOffsets}, b[0], b[1], base);
  mma<false>(base, {kOffsets, kOffsets, kOffsets, kOffsets}, b[2], b[3], base);
  int seen = 0;
#pragma unroll
  for (int piece = 0; piece < 2; ++piece) {
    uint4 x[4];
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
      const uint8_t* quad = page + kShape.values_at() + (4 * tile + t) * kShape.quad_bytes();
      x[tile] = reinterpret_cast<const uint4*>(quad)[8 * piece + g];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int c[4];
      Bytes e = expand(word_of(x[0], i)), f = expand(word_of(x[1], i));
      mma<false>(c, {e.low, e.high, f.low, f.high}, b[0], b[1], base);
      e = expand(word_of(x[2], i)), f = expand(word_of(x[3], i));
      mma<false>(c, {e.low, e.high, f.low, f.high}, b[2], b[3], c);
      seen ^= c[0];
      sums.of[4 * piece + i][0] += static_cast<float>(256 * c[0] + c[1]) * unit;
      sums.of[4 * piece + i][1] += static_cast<float>(256 * c[2] + c[3]) * unit;
    }
  }
  return seen;
}

template <class Pages>
__global__ void __launch_bounds__(kBlockWarps * 32, Pages::kBlocks) mma_kernel(Params p) {
  extern __shared__ __align__(128) uint8_t slots[];
  __shared__ WholeQuery queries[kBlockWarps];
  Part part;
  if (!part.find(p, warp_in_grid())) return;
  Pages pages(p, part, slots);
  queries[threadIdx.x / 32].make(p, part);
  const MmaQuery q(queries[threadIdx.x / 32]);
  MmaSums sums;
  for (int i = part.part; i < p.n_pages; i += p.n_parts) {
    const uint8_t* page = pages.next();
    float score[8];
    uint32_t weights[4];
    mma_scores(page, q, score);
    const float unit = mma_weights(page, score, sums, weights);
    pages.release(mma_values(page, weights, unit, sums));
  }
  for (int step = 4; step < 32; step *= 2) sums.divisor += __shfl_xor_sync(kAll, sums.divisor, step);
  const int g = lane_id() / 4, t = lane_id() % 4;
  Piece& piece = part.piece(p, t);
#pragma unroll
  for (int i = 0; i < 8; ++i)
    *reinterpret_cast<float2*>(piece.sums + 64 * (i / 4) + 8 * g + 2 * (i % 4)) =
        make_float2(sums.of[i][0], sums.of[i][1]);
  if (g == 0) piece.maximum = sums.maximum, piece.divisor = sums.divisor;
}

}  // namespace firstlight::ladder

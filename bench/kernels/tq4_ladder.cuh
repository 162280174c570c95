// SPDX-License-Identifier: Apache-2.0
// What the steps of the ladder share: how work is cut, what a warp leaves, and the kernel that adds it up. Queries come
// rotated and results stay rotated: rotations are the last step's. head_dim is 128, four heads read a key.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "firstlight/quant/turboquant_page.h"

namespace firstlight::ladder {

namespace tq = firstlight::turboquant;

inline constexpr int kDim = 128, kGroup = 4, kBlockWarps = 4;
inline constexpr tq::PageShape kShape{kDim, 4, 4};
inline constexpr unsigned kAll = 0xffffffffu;

/// What a warp has of a head's softmax; scores in powers of two.
struct Piece {
  float sums[kDim];
  float maximum, divisor, none[2];
};

struct Params {
  const uint8_t* pages;    ///< of a layer: page p at p * stride, [n_kv_heads] of kShape
  uint64_t stride;         ///< bytes
  const int32_t* numbers;  ///< [batch, n_pages]
  const float* q;          ///< [batch, n_kv_heads, kGroup, kDim], rotated
  Piece* pieces;           ///< [batch, n_kv_heads, kGroup, n_parts]
  float* out;              ///< as q
  float scale;             ///< of scores, log2 e in it
  int batch, n_kv_heads, n_pages, n_parts;
};

/// A warp's work: every n_parts-th page of a sequence, for one key/value head.
struct Part {
  int sequence, kv_head, part;
  /// `warp` counts over the grid; false: there is no more.
  __device__ bool find(const Params& p, int warp) {
    part = warp % p.n_parts;
    kv_head = warp / p.n_parts % p.n_kv_heads;
    sequence = warp / p.n_parts / p.n_kv_heads;
    return sequence < p.batch;
  }
  __device__ const float* query(const Params& p) const {
    return p.q + (sequence * p.n_kv_heads + kv_head) * kGroup * kDim;
  }
  __device__ Piece& piece(const Params& p, int head) const {
    return p.pieces[((sequence * p.n_kv_heads + kv_head) * kGroup + head) * p.n_parts + part];
  }
  __device__ int number(const Params& p, int page) const { return __ldg(p.numbers + sequence * p.n_pages + page); }
  __device__ const uint8_t* page(const Params& p, int number) const {
    return p.pages + static_cast<uint64_t>(number) * p.stride + kv_head * kShape.bytes();
  }
};

__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x) % 32; }
__device__ __forceinline__ int warp_in_grid() { return static_cast<int>(blockIdx.x * kBlockWarps + threadIdx.x / 32); }

/// The scale of a key (side 0) or value of a page.
__device__ __forceinline__ float scale_at(const uint8_t* page, int side, int slot) {
  return tq::scale_of(reinterpret_cast<const uint16_t*>(page + kShape.key_scales_at())[64 * side + slot]);
}

/// A query as whole numbers of 15 bits, each two bytes with a sign: 128 high + low. By one warp.
struct WholeQuery {
  int8_t high[kGroup][kDim], low[kGroup][kDim];
  float unit[kGroup];  ///< what 1 of a product is worth as a score
  int offset[kGroup];  ///< what codes expanded by 64 too much add to a product

  __device__ void make(const Params& p, const Part& part) {
    const int lane = lane_id();
    for (int head = 0; head < kGroup; ++head) {
      const float4 x = reinterpret_cast<const float4*>(part.query(p) + head * kDim)[lane];
      float most = fmaxf(fmaxf(fabsf(x.x), fabsf(x.y)), fmaxf(fabsf(x.z), fabsf(x.w)));
      for (int step = 16; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(kAll, most, step));
      const float each[4] = {x.x, x.y, x.z, x.w};
      int sum = 0;
      for (int i = 0; i < 4; ++i) {
        const int whole = most > 0 ? __float2int_rn(each[i] * (16256 / most)) : 0, upper = (whole + 64) >> 7;
        high[head][4 * lane + i] = static_cast<int8_t>(upper);
        low[head][4 * lane + i] = static_cast<int8_t>(whole - 128 * upper);
        sum += whole;
      }
      sum = __reduce_add_sync(kAll, sum);
      if (lane == 0) unit[head] = most / 16256 * p.scale, offset[head] = 64 * sum;
    }
    __syncwarp();
  }
};

/// The result of a row's head is the sum of all parts' pieces. A block a head, a thread a channel.
__global__ static void __launch_bounds__(kDim) merge_kernel(Params p) {
  const Piece* pieces = p.pieces + static_cast<int64_t>(blockIdx.x) * p.n_parts;
  float top = pieces[0].maximum, sum = 0, divisor = 0;
  for (int i = 1; i < p.n_parts; ++i) top = fmaxf(top, pieces[i].maximum);
  for (int i = 0; i < p.n_parts; ++i) {
    const float share = exp2f(pieces[i].maximum - top);
    sum += share * pieces[i].sums[threadIdx.x];
    divisor += share * pieces[i].divisor;
  }
  p.out[blockIdx.x * kDim + threadIdx.x] = sum / divisor;
}

}  // namespace firstlight::ladder

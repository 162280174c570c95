// SPDX-License-Identifier: Apache-2.0
// A page of codes as bf16 levels in shared memory, for attention of a prompt: what its threads load of it, and expand.
#pragma once
#include "firstlight/kv/kv_kind.h"
#include "firstlight/ops/codes_expand_cuda.cuh"
#include "firstlight/ops/cuda_kernel.cuh"
#include "firstlight/ops/cuda_ptx.cuh"
#include "firstlight/quant/turboquant_page.h"

namespace firstlight::cuda {

inline constexpr int kCodeTileThreads = 128;

template <int kDim>
struct TileShared {
  alignas(128) uint4 keys[kPageTokens * kDim / 8], values[kPageTokens * kDim / 8];
  float key_scales[kPageTokens], value_scales[kPageTokens];
  ExpandTables tables[4];
  /// Where a row's numbers lie while they are rotated: keys and values are not there then.
  __device__ float* row(int i) { return reinterpret_cast<float*>(keys) + i * kDim; }
};

/// 16-byte pieces of a slot are dealt over the banks.
template <int kDim>
__device__ __forceinline__ int place(int slot, int piece) {
  return slot * (kDim / 8) + (piece ^ (slot & 7));
}
template <int kDim>
__device__ __forceinline__ uint32_t address(const uint4* tile, int slot, int piece) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(tile)) + static_cast<uint32_t>(place<kDim>(slot, piece) * 16);
}

/// Bytes 64 + level (0 and 1, or 2 and 3, of x) as a pair of bf16 levels: 0x43 before 7 bits b is 128 + b.
__device__ __forceinline__ uint32_t level_pair(uint32_t bytes) {
  __nv_bfloat162 x;
  const uint32_t raised = (bytes & 0x00ff00ffu) | 0x43004300u;
  *reinterpret_cast<uint32_t*>(&x) = raised;
  const __nv_bfloat162 y = __hsub2(x, __floats2bfloat162_rn(128.0f + kOffset, 128.0f + kOffset));
  return *reinterpret_cast<const uint32_t*>(&y);
}
__device__ __forceinline__ uint32_t whole_pair(int a, int b) {
  return pack(static_cast<float>(a), static_cast<float>(b));
}
__device__ __forceinline__ int byte_of(uint32_t x, int i) { return static_cast<int8_t>(x >> (8 * i)); }

/// A page's keys and values of 4 or 8 bits, in 16-byte pieces.
template <int kDim, int kKeyBits, int kValueBits>
struct PageCodes {
  static constexpr int kKeyPieces = kPageTokens * kDim * kKeyBits / 128 / kCodeTileThreads;
  static constexpr int kValuePieces = kPageTokens * kDim * kValueBits / 128 / kCodeTileThreads;
  static constexpr tq::PageShape kShape{kDim, kKeyBits, kValueBits};
  uint4 keys[kKeyPieces], values[kValuePieces];
  uint16_t scale;

  __device__ __forceinline__ void load(const uint8_t* page) {
#pragma unroll
    for (int i = 0; i < kKeyPieces; ++i)
      keys[i] = *reinterpret_cast<const uint4*>(page + (i * kCodeTileThreads + threadIdx.x) * 16);
#pragma unroll
    for (int i = 0; i < kValuePieces; ++i)
      values[i] =
          *reinterpret_cast<const uint4*>(page + kShape.values_at() + (i * kCodeTileThreads + threadIdx.x) * 16);
    scale = reinterpret_cast<const uint16_t*>(page + kShape.key_scales_at())[threadIdx.x];
  }
  __device__ void expand_to(TileShared<kDim>& shared, const ExpandTables& tables) const {
    if (threadIdx.x < kPageTokens) {
      shared.key_scales[threadIdx.x] = tq::scale_of(scale);
    } else {
      shared.value_scales[threadIdx.x - kPageTokens] = tq::scale_of(scale);
    }
#pragma unroll
    for (int i = 0; i < kKeyPieces; ++i) {
      constexpr int kPerToken = kDim * kKeyBits / 128;
      const int at = i * kCodeTileThreads + static_cast<int>(threadIdx.x), slot = at / kPerToken,
                first = at % kPerToken;
      const uint32_t words[4] = {keys[i].x, keys[i].y, keys[i].z, keys[i].w};
      if constexpr (kKeyBits == 4) {
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          const Expanded x = expand(tables, words[w]);
          shared.keys[place<kDim>(slot, first * 4 + w)] =
              make_uint4(level_pair(permute(x.low, 0, 0x4140)), level_pair(permute(x.low, 0, 0x4342)),
                         level_pair(permute(x.high, 0, 0x4140)), level_pair(permute(x.high, 0, 0x4342)));
        }
      } else {
#pragma unroll
        for (int w = 0; w < 4; w += 2) {
          const uint32_t a = words[w], b = words[w + 1];
          shared.keys[place<kDim>(slot, first * 2 + w / 2)] =
              make_uint4(whole_pair(byte_of(a, 0), byte_of(a, 1)), whole_pair(byte_of(a, 2), byte_of(a, 3)),
                         whole_pair(byte_of(b, 0), byte_of(b, 1)), whole_pair(byte_of(b, 2), byte_of(b, 3)));
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kValuePieces; ++i) {
      constexpr int kPerQuad = kDim * kValueBits / 32;
      const int at = i * kCodeTileThreads + static_cast<int>(threadIdx.x), slot = at / kPerQuad * tq::kQuad,
                first = at % kPerQuad;
      const uint32_t words[4] = {values[i].x, values[i].y, values[i].z, values[i].w};
      if constexpr (kValueBits == 4) {  // a word: two channels of four tokens
        Expanded x[4];
#pragma unroll
        for (int w = 0; w < 4; ++w) x[w] = expand(tables, words[w]);
#pragma unroll
        for (int j = 0; j < tq::kQuad; ++j) {
          const uint32_t pick = 0x0040u | static_cast<uint32_t>(j) | static_cast<uint32_t>(4 + j) << 8;
          const auto pair = [&](int w) { return level_pair(permute(x[w].low, x[w].high, pick)); };
          shared.values[place<kDim>(slot + j, first)] = make_uint4(pair(0), pair(1), pair(2), pair(3));
        }
      } else {  // a word: a channel of four tokens
#pragma unroll
        for (int j = 0; j < tq::kQuad; ++j) {
          auto* to = reinterpret_cast<uint2*>(&shared.values[place<kDim>(slot + j, first / 2)]);
          to[first % 2] = make_uint2(whole_pair(byte_of(words[0], j), byte_of(words[1], j)),
                                     whole_pair(byte_of(words[2], j), byte_of(words[3], j)));
        }
      }
    }
  }
};

}  // namespace firstlight::cuda

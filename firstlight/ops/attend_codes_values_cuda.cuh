// SPDX-License-Identifier: Apache-2.0
// A page's values as attend_codes_keys_cuda.cuh has its keys: a lane's words are quads of tokens, columns of the first
// operand, of channels of its own; weights are the second.
#pragma once
#include "firstlight/ops/attend_codes_keys_cuda.cuh"

namespace firstlight::cuda {

/// A page's weights as the second operand: whole numbers of 16 bits.
template <int kSets>
struct CodeWeights {
  uint32_t b[kSets][kTiles];
  float unit[kSets];  ///< what 1 is worth, with 64 times the values' scale
};

/// Rows of a matrix of 8 x 8 values of 16 bits become its columns: lane 4 g + t has columns 2 t and 2 t + 1 of row g.
__device__ __forceinline__ uint32_t transpose(uint32_t x) {
  uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

/// Two neighbouring channels: of the lane's i-th pair the first one.
template <int kBits>
__device__ __forceinline__ int channel_pair(int i) {
  const int g = static_cast<int>(threadIdx.x) % 32 / 4;
  return kBits == 4 ? 64 * (i / 4) + 8 * g + 2 * (i % 4) : 32 * (i / 2) + 4 * g + 2 * (i % 2);
}

/// sums[set][pair] += weights times values. What is returned depends on every word that was read.
template <int kDim, int kBits, int kSets>
__device__ __forceinline__ int mix_page(const uint8_t* values, const ExpandTables& tables, const CodeWeights<kSets>& w,
                                        float (&sums)[kSets][kDim / 16][2]) {
  constexpr int kQuadBytes = kDim * kBits / 2, kPairs = kBits == 4 ? 4 : 2;  // of a piece of 16 bytes
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const uint8_t* mine = values + lane % 4 * kQuadBytes + lane / 4 * 16;
  constexpr int kTileStep = 4 * kQuadBytes;
  int base[kSets][4] = {}, seen = 0;
  if constexpr (kBits == 4) {
    const uint32_t offsets[4] = {kMinusOffsets, kMinusOffsets, kMinusOffsets, kMinusOffsets};
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      mma_u8(base[set], offsets, w.b[set][0], w.b[set][1], base[set]);
      mma_u8(base[set], offsets, w.b[set][2], w.b[set][3], base[set]);
    }
  }
#pragma unroll
  for (int piece = 0; piece < kDim / 16 / kPairs; ++piece) {
    uint4 x[kTiles];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
      x[tile] = *reinterpret_cast<const uint4*>(mine + tile * kTileStep + piece * 128);
    const auto word = [&](int tile, int i) {
      return i == 0 ? x[tile].x : i == 1 ? x[tile].y : i == 2 ? x[tile].z : x[tile].w;
    };
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      int c[kSets][4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t a[4];
        if constexpr (kBits == 4) {
          const Expanded e = expand(tables, word(2 * half, pair)), f = expand(tables, word(2 * half + 1, pair));
          a[0] = e.low, a[1] = e.high, a[2] = f.low, a[3] = f.high;
        } else {
          a[0] = word(2 * half, 2 * pair), a[1] = word(2 * half, 2 * pair + 1);
          a[2] = word(2 * half + 1, 2 * pair), a[3] = word(2 * half + 1, 2 * pair + 1);
        }
#pragma unroll
        for (int set = 0; set < kSets; ++set)
          mma_u8(c[set], a, w.b[set][2 * half], w.b[set][2 * half + 1], half == 0 ? base[set] : c[set]);
      }
#pragma unroll
      for (int set = 0; set < kSets; ++set) {
        float(&sum)[2] = sums[set][piece * kPairs + pair];
        sum[0] += static_cast<float>(c[set][0] * 256 + c[set][1]) * w.unit[set];
        sum[1] += static_cast<float>(c[set][2] * 256 + c[set][3]) * w.unit[set];
      }
      seen ^= c[0][0];
    }
  }
  return seen;
}

}  // namespace firstlight::cuda

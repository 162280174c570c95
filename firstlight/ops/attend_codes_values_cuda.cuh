// SPDX-License-Identifier: Apache-2.0
// A page's values as attend_codes_keys_cuda.cuh has its keys: a lane's words are quads of tokens, the first operand's
// columns, of channels of its own.
#pragma once
#include "firstlight/ops/codes_expand_cuda.cuh"
#include "firstlight/ops/cuda_ptx.cuh"

namespace firstlight::cuda {

/// A page's weights as the first operand: whole numbers of 16 bits.
struct CodeWeights {
  uint32_t a[2][4];  ///< [half page]
  float unit;        ///< what 1 is worth, with 64 times the values' scale
};

/// Tile n of the values' channels: of the one in column c.
template <int kBits>
__device__ __forceinline__ int channel(int n, int c) {
  return kBits == 4 ? 64 * (n / 8) + 8 * c + n % 8 : 32 * (n / 4) + 4 * c + n % 4;
}

template <int kDim, int kBits>
struct CodeValues {
  static constexpr int kPieces = kDim * kBits / 256;  // of 16 bytes, of a quad, in a lane
  uint4 pieces[4][kPieces];                           ///< [2 half + quad]
  static constexpr int kQuadBytes = kDim * kBits / 2;

  /// Where the lane's first piece lies among a page's values.
  __device__ static __forceinline__ int lane_offset() {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    return 2 * (lane % 4) * kQuadBytes + lane / 4 * 16;
  }
  __device__ __forceinline__ void load(const uint8_t* at) {
#pragma unroll
    for (int quad = 0; quad < 4; ++quad) {
#pragma unroll
      for (int i = 0; i < kPieces; ++i)
        pieces[quad][i] = load_stream(at + (8 * (quad / 2) + quad % 2) * kQuadBytes + i * 128);
    }
  }
  __device__ __forceinline__ uint32_t word(int quad, int i) const {
    const uint4& x = pieces[quad][i / 4];
    return i % 4 == 0 ? x.x : i % 4 == 1 ? x.y : i % 4 == 2 ? x.z : x.w;
  }

  /// sums += weights times values, of row g, columns 2 t and 2 t + 1 of each tile.
  __device__ __forceinline__ void mix(const ExpandTables& tables, const CodeWeights& w,
                                      float (&sums)[kDim / 8][2]) const {
    const int zeros[4] = {};
    const auto add = [&](const int(&c)[4], float(&sum)[2]) {
      sum[0] += static_cast<float>(c[0] * 256 + c[2]) * w.unit;
      sum[1] += static_cast<float>(c[1] * 256 + c[3]) * w.unit;
    };
    if constexpr (kBits == 4) {
      int base[4];
      mma_u8(base, w.a[0], kMinusOffsets, kMinusOffsets, zeros);
      mma_u8(base, w.a[1], kMinusOffsets, kMinusOffsets, base);
#pragma unroll
      for (int i = 0; i < kDim / 16; ++i) {
        const Expanded e0 = expand(tables, word(0, i)), e1 = expand(tables, word(1, i)),
                       f0 = expand(tables, word(2, i)), f1 = expand(tables, word(3, i));
        int c[4], d[4];
        mma_u8(c, w.a[0], e0.low, e1.low, base);
        mma_u8(d, w.a[0], e0.high, e1.high, base);
        mma_u8(c, w.a[1], f0.low, f1.low, c);
        mma_u8(d, w.a[1], f0.high, f1.high, d);
        add(c, sums[2 * i]);
        add(d, sums[2 * i + 1]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) {
        int c[4];
        mma_u8(c, w.a[0], word(0, i), word(1, i), zeros);
        mma_u8(c, w.a[1], word(2, i), word(3, i), c);
        add(c, sums[i]);
      }
    }
  }
};

}  // namespace firstlight::cuda

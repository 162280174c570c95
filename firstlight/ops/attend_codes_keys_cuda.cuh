// SPDX-License-Identifier: Apache-2.0
// A page's keys, from shared memory, times queries, by 8-bit tensor cores (m16n8k32). Keys are the first operand, 16
// tokens at a time; columns of the second are heads, the high byte of q (or of a weight) and the low one side by side,
// so that both parts of a result lie in one lane: four heads a set of eight columns. Lane 4 g + t has head t of each
// set and of each tile the tokens of pair_token(): in place for values, which lie by quads of tokens.
#pragma once
#include "firstlight/ops/codes_expand_cuda.cuh"
#include "firstlight/ops/cuda_ptx.cuh"

namespace firstlight::cuda {

inline constexpr int kTiles = 4;  ///< of 16 tokens, of a page

/// Queries as the second operand.
template <int kDim, int kSets>
struct CodeQuery {
  uint32_t b[kSets][kDim / 32][2];
  int base[kSets][4];  ///< what products begin with, as a third operand: -kOffset Σ q for codes of 4 bits
};

/// The first of the lane's 8 dimensions of step s: four in the operands' places 4 t, four in 16 + 4 t.
template <int kDim, int kBits>
__device__ __forceinline__ int first_dimension(int s) {
  const int t = static_cast<int>(threadIdx.x) % 4;
  return kBits == 4 ? t * (kDim / 4) + 8 * s : 16 * (t + 4 * (s / 2)) + 8 * (s % 2);
}

/// The lane's first token of a tile; the next one is its second.
__device__ __forceinline__ int pair_token(int tile) { return 16 * tile + 2 * (static_cast<int>(threadIdx.x) % 32 / 4); }

/// Two fp16 of the lane's tokens of a tile, `scales` of 64.
__device__ __forceinline__ float2 pair_of_scales(const uint8_t* scales, int tile) {
  const uint32_t two = *reinterpret_cast<const uint32_t*>(scales + 2 * pair_token(tile));
  float2 y;
  asm("{\n.reg .f16 a, b;\nmov.b32 {a, b}, %2;\ncvt.f32.f16 %0, a;\ncvt.f32.f16 %1, b;\n}"
      : "=f"(y.x), "=f"(y.y)
      : "r"(two));
  return y;
}

/// A token's words of a lane, for all steps.
template <int kDim, int kBits>
struct KeyWords {
  static constexpr int kWords = kDim * kBits / 128;
  uint32_t of[kWords];
  __device__ __forceinline__ explicit KeyWords(const uint8_t* token) {
    const int t = static_cast<int>(threadIdx.x) % 4;
    if constexpr (kWords == 2) {
      const uint2 x = *reinterpret_cast<const uint2*>(token + 8 * t);
      of[0] = x.x, of[1] = x.y;
    } else {
#pragma unroll
      for (int w = 0; w < kWords; w += 4) {  // pieces of a token's four lanes follow each other
        const uint4 x = *reinterpret_cast<const uint4*>(token + 16 * (t + w));
        of[w] = x.x, of[w + 1] = x.y, of[w + 2] = x.z, of[w + 3] = x.w;
      }
    }
  }
};

/// scores[set][2 tile + e]: q times key, but for the key's scale. What is returned depends on every word that was read.
template <int kDim, int kBits, int kSets>
__device__ __forceinline__ int score_page(const uint8_t* keys, const ExpandTables& tables,
                                          const CodeQuery<kDim, kSets>& q, float (&scores)[kSets][2 * kTiles]) {
  int seen = 0;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    const uint8_t* token = keys + pair_token(tile) * (kDim * kBits / 8);
    const KeyWords<kDim, kBits> first(token), second(token + kDim * kBits / 8);
    int c[kSets][4];
#pragma unroll
    for (int s = 0; s < kDim / 32; ++s) {
      uint32_t a[4];
      if constexpr (kBits == 4) {
        const Expanded x = expand(tables, first.of[s]), y = expand(tables, second.of[s]);
        a[0] = x.low, a[1] = y.low, a[2] = x.high, a[3] = y.high;
      } else {
        a[0] = first.of[2 * s], a[1] = second.of[2 * s], a[2] = first.of[2 * s + 1], a[3] = second.of[2 * s + 1];
      }
#pragma unroll
      for (int set = 0; set < kSets; ++set) {
        const int(&so_far)[4] = c[set];
        mma_s8(c[set], a, q.b[set][s][0], q.b[set][s][1], s == 0 ? q.base[set] : so_far);
      }
    }
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      scores[set][2 * tile] = static_cast<float>(c[set][0] * 128 + c[set][1]);
      scores[set][2 * tile + 1] = static_cast<float>(c[set][2] * 128 + c[set][3]);
    }
    seen ^= c[0][0];
  }
  return seen;
}

/// Times the keys' scales, which are stored 64 times as large.
template <int kSets>
__device__ __forceinline__ void scale_scores(const uint8_t* scales, float (&scores)[kSets][2 * kTiles]) {
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    const float2 scale = pair_of_scales(scales, tile);
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      scores[set][2 * tile] *= scale.x;
      scores[set][2 * tile + 1] *= scale.y;
    }
  }
}

}  // namespace firstlight::cuda

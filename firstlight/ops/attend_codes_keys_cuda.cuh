// SPDX-License-Identifier: Apache-2.0
// A page of codes in a warp's registers, and its products by 8-bit tensor cores (m16n8k32). Heads are rows 0 to 7 (the
// high byte of q or of a weight) and 8 to 15 (the low byte) of the first operand, so that both parts of a result lie in
// one lane. Lane 4 g + t reads dimensions of its own of tokens picked so that its scores, tokens 8 t to 8 t + 7 of each
// half page, are in place as the first operand of the second product. All is loaded as it lies, 16 bytes at a time.
#pragma once
#include "firstlight/ops/codes_expand_cuda.cuh"
#include "firstlight/ops/cuda_ptx.cuh"

namespace firstlight::cuda {

/// Queries as the first operand.
template <int kDim>
struct CodeQuery {
  uint32_t a[kDim / 32][4];
  int base[4];  ///< what products begin with: -kOffset Σ q for codes of 4 bits
};

/// The first of the lane's 8 dimensions of step s: four in the first operand's columns 4 t, four in 16 + 4 t.
template <int kDim, int kBits>
__device__ __forceinline__ int first_dimension(int s) {
  const int t = static_cast<int>(threadIdx.x) % 4;
  return kBits == 4 ? t * (kDim / 4) + 8 * s : 16 * (t + 4 * (s / 2)) + 8 * (s % 2);
}

/// 64 scales of a page in shared memory, those of the lane's 16 tokens.
struct ScalePieces {
  uint4 halves[2];
  __device__ explicit __forceinline__ ScalePieces(const uint8_t* scales)
      : halves{*reinterpret_cast<const uint4*>(scales + 16 * (threadIdx.x % 4)),
               *reinterpret_cast<const uint4*>(scales + 64 + 16 * (threadIdx.x % 4))} {}
  /// Of tokens 2 i and 2 i + 1 of the lane's.
  __device__ __forceinline__ float2 pair(int i) const {
    const uint4& x = halves[i / 4];
    const uint32_t two = i % 4 == 0 ? x.x : i % 4 == 1 ? x.y : i % 4 == 2 ? x.z : x.w;
    float2 y;
    asm("{\n.reg .f16 a, b;\nmov.b32 {a, b}, %2;\ncvt.f32.f16 %0, a;\ncvt.f32.f16 %1, b;\n}"
        : "=f"(y.x), "=f"(y.y)
        : "r"(two));
    return y;
  }
};

template <int kDim, int kBits>
struct CodeKeys {
  static constexpr int kWords = kDim * kBits / 128;  // of a token, in a lane
  uint32_t words[8][kWords];                         ///< [tile]

  /// Where the lane's first piece lies in a page.
  __device__ static __forceinline__ int lane_offset() {
    const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
    return (8 * (g / 2) + g % 2) * (kDim * kBits / 8) + t * (kWords >= 4 ? 16 : 4 * kWords);
  }
  __device__ __forceinline__ void load(const uint8_t* at) {
#pragma unroll
    for (int tile = 0; tile < 8; ++tile) {
      const uint8_t* token = at + (32 * (tile / 4) + 2 * (tile % 4)) * (kDim * kBits / 8);
      if constexpr (kWords == 2) {
        const uint2 x = load_stream2(token);
        words[tile][0] = x.x, words[tile][1] = x.y;
      } else {
#pragma unroll
        for (int w = 0; w < kWords; w += 4) {
          const uint4 x = load_stream(token + w * 16);  // pieces of a token's four lanes follow each other
          words[tile][w] = x.x, words[tile][w + 1] = x.y, words[tile][w + 2] = x.z, words[tile][w + 3] = x.w;
        }
      }
    }
  }

  __device__ static __forceinline__ uint2 load_stream2(const void* at) {
    uint2 x;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "l"(at));
    return x;
  }

  /// scores[2 tile + e]: q times key, times 64 times the key's scale.
  __device__ __forceinline__ void score(const ExpandTables& tables, const CodeQuery<kDim>& q, const ScalePieces& scales,
                                        float (&scores)[16]) const {
#pragma unroll
    for (int tile = 0; tile < 8; ++tile) {
      int c[4] = {q.base[0], q.base[1], q.base[2], q.base[3]};
#pragma unroll
      for (int s = 0; s < kDim / 32; ++s) {
        if constexpr (kBits == 4) {
          const Expanded x = expand(tables, words[tile][s]);
          mma_s8(c, q.a[s], x.low, x.high, c);
        } else {
          mma_s8(c, q.a[s], words[tile][2 * s], words[tile][2 * s + 1], c);
        }
      }
      const float2 scale = scales.pair(tile);
      scores[2 * tile] = static_cast<float>(c[0] * 128 + c[2]) * scale.x;
      scores[2 * tile + 1] = static_cast<float>(c[1] * 128 + c[3]) * scale.y;
    }
  }
};

}  // namespace firstlight::cuda

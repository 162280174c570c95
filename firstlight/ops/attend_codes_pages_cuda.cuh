// SPDX-License-Identifier: Apache-2.0
// A page of codes in a warp's registers, and its products by 8-bit tensor cores (m16n8k32). Heads are rows 0 to 7 (the
// high byte of q or of a weight) and 8 to 15 (the low byte) of the first operand, so that both parts of a result lie in
// one lane. Lane 4 g + t reads dimensions of its own of tokens picked so that its scores, tokens 8 t to 8 t + 7 of each
// half page, are in place as the first operand of the second product. All is loaded as it lies, 16 bytes at a time.
#pragma once
#include "firstlight/ops/codes_warp_cuda.cuh"
#include "firstlight/ops/cuda_ptx.cuh"

namespace firstlight::cuda {

/// d = a b + c: a [16, 32] signed, b [32, 8] signed.
__device__ __forceinline__ void mma_s8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                       const int (&c)[4]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, "
      "%13};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}
/// The same with a unsigned.
__device__ __forceinline__ void mma_u8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                       const int (&c)[4]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, "
      "%13};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}

/// Codes of 4 bits are expanded to kOffset + level, 4 to 124: a byte permutation replicates the top bit (here 0) of the
/// byte it picks where the selector's own top bit is set, so of a table for either sign one gives 0.
inline constexpr int kOffset = 64;
inline constexpr uint32_t kMinusOffsets = 0xc0c0c0c0u;  // four times -kOffset
__host__ __device__ constexpr uint32_t expanded(int sign, uint32_t first) {
  uint32_t four = 0;
  for (uint32_t i = 0; i < 4; ++i) four |= static_cast<uint32_t>(kOffset + sign * tq::level<4>(first + i)) << (8 * i);
  return four;
}
__device__ __forceinline__ uint32_t permute(uint32_t low, uint32_t high, uint32_t selector) {
  uint32_t x;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(x) : "r"(low), "r"(high), "r"(selector));
  return x;
}
/// x / 2^16. Integer dot products have a pipe of their own, permutations and logic share one, which is the busiest.
__device__ __forceinline__ uint32_t upper_half(uint32_t x, uint32_t second) {
#ifdef TQ_SHIFT
  return x >> 16;
#else
  return __dp2a_lo(x, second, 0u);
#endif
}
/// Constants that stay in registers, because they come from a place of the lane's own in shared memory: if the compiler
/// knew them, or that all lanes have the same, it would move them to registers anew for every word, 200 instructions a
/// page.
struct ExpandTables {
  uint32_t plus, minus, second;
  __host__ __device__ static constexpr ExpandTables known() { return {expanded(1, 0), expanded(-1, 0), 0x0100}; }
};
/// Of eight codes the first four, and the others.
struct Expanded {
  uint32_t low, high;
};
__device__ __forceinline__ Expanded expand(const ExpandTables& tables, uint32_t codes) {
  constexpr uint32_t plus = expanded(1, 4), minus = expanded(-1, 4);
  const uint32_t flipped = codes ^ 0x88888888u;
  return {permute(tables.plus, plus, codes) | permute(tables.minus, minus, flipped),
          permute(tables.plus, plus, upper_half(codes, tables.second)) |
              permute(tables.minus, minus, upper_half(flipped, tables.second))};
}

#ifdef TQ_DOUBLE
__device__ __forceinline__ Expanded expand_plus(const ExpandTables& tables, uint32_t codes) {
  constexpr uint32_t plus = expanded(1, 4);
  return {permute(tables.plus, plus, codes), permute(tables.plus, plus, upper_half(codes, tables.second))};
}
__device__ __forceinline__ Expanded expand_minus(const ExpandTables& tables, uint32_t codes) {
  constexpr uint32_t minus = expanded(-1, 4);
  const uint32_t flipped = codes ^ 0x88888888u;
  return {permute(tables.minus, minus, flipped), permute(tables.minus, minus, upper_half(flipped, tables.second))};
}
#endif

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
#ifdef TQ_DOUBLE
          const Expanded x = expand_plus(tables, words[tile][s]), y = expand_minus(tables, words[tile][s]);
          mma_s8(c, q.a[s], x.low, x.high, c);
          mma_s8(c, q.a[s], y.low, y.high, c);
#else
          const Expanded x = expand(tables, words[tile][s]);
          mma_s8(c, q.a[s], x.low, x.high, c);
#endif
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
#ifdef TQ_DOUBLE
        int c[4], d[4];
        const Expanded e0 = expand_plus(tables, word(0, i)), e1 = expand_plus(tables, word(1, i));
        mma_u8(c, w.a[0], e0.low, e1.low, base);
        mma_u8(d, w.a[0], e0.high, e1.high, base);
        const Expanded f0 = expand_plus(tables, word(2, i)), f1 = expand_plus(tables, word(3, i));
        mma_u8(c, w.a[1], f0.low, f1.low, c);
        mma_u8(d, w.a[1], f0.high, f1.high, d);
        const Expanded g0 = expand_minus(tables, word(0, i)), g1 = expand_minus(tables, word(1, i));
        mma_u8(c, w.a[0], g0.low, g1.low, c);
        mma_u8(d, w.a[0], g0.high, g1.high, d);
        const Expanded h0 = expand_minus(tables, word(2, i)), h1 = expand_minus(tables, word(3, i));
        mma_u8(c, w.a[1], h0.low, h1.low, c);
        mma_u8(d, w.a[1], h0.high, h1.high, d);
#else
        const Expanded e0 = expand(tables, word(0, i)), e1 = expand(tables, word(1, i)),
                       f0 = expand(tables, word(2, i)), f1 = expand(tables, word(3, i));
        int c[4], d[4];
        mma_u8(c, w.a[0], e0.low, e1.low, base);
        mma_u8(d, w.a[0], e0.high, e1.high, base);
        mma_u8(c, w.a[1], f0.low, f1.low, c);
        mma_u8(d, w.a[1], f0.high, f1.high, d);
#endif
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

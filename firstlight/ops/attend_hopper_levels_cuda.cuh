// SPDX-License-Identifier: Apache-2.0
// Codes as pairs of bf16, for Hopper's attention.
#pragma once
#include "firstlight/ops/codes_expand_cuda.cuh"
#include "firstlight/ops/cuda_kernel.cuh"

namespace firstlight::cuda {

/// Pairs of bf16: instructions, because what the compiler makes of its own type packs constants anew for each.
__device__ __forceinline__ uint32_t minus(uint32_t a, uint32_t b) {
  uint32_t x;
  asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(x) : "r"(a), "r"(b));
  return x;
}
/// A scale, or two, as the sum of two bf16: a level times it is rounded once (a stored scale has 11 bits).
struct ScalePair {
  uint32_t high, low;
  __device__ __forceinline__ static ScalePair of(float a, float b) {
    ScalePair pair;
    split(a, b, pair.high, pair.low);
    return pair;
  }
  __device__ __forceinline__ uint32_t times(uint32_t levels) const {
    uint32_t x;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(x) : "r"(levels), "r"(low));
    asm("fma.rn.bf16x2 %0, %1, %2, %0;" : "+r"(x) : "r"(levels), "r"(high));
    return x;
  }
};

/// Two bytes of codes of 8 bits as bf16: 0x43 before 7 bits b is 128 + b; 0x4380 is 256.
__device__ __forceinline__ uint32_t whole_levels(uint32_t codes, uint32_t selector) {
  const uint32_t x = permute(codes, 0x43434343u, selector);
  return minus(x & 0xff7fff7fu, x & 0xff80ff80u);
}
inline constexpr uint32_t kMiddle = 0x43004300u + (kOffset << 16 | kOffset);  // twice 128 + 64
/// Two bytes 64 + level.
__device__ __forceinline__ uint32_t small_levels(uint32_t bytes, uint32_t selector) {
  return minus(permute(bytes, 0x43434343u, selector), kMiddle);
}
static_assert(kOffset == 64);

/// The codes of a word as pairs of bf16, in their order.
template <int kBits>
__device__ __forceinline__ void levels_of(const ExpandTables& tables, uint32_t word, uint32_t (&pairs)[16 / kBits]) {
  if constexpr (kBits == 4) {
    const Expanded x = expand(tables, word);
    pairs[0] = small_levels(x.low, 0x4140), pairs[1] = small_levels(x.low, 0x4342);
    pairs[2] = small_levels(x.high, 0x4140), pairs[3] = small_levels(x.high, 0x4342);
  } else {
    pairs[0] = whole_levels(word, 0x4140), pairs[1] = whole_levels(word, 0x4342);
  }
}

/// Of byte i of two words: as levels_of() has them, expanded codes of 4 bits or codes of 8.
template <int kBits>
__device__ __forceinline__ uint32_t levels_across(uint32_t a, uint32_t b, uint32_t i) {
  const uint32_t x = (permute(a, b, i | (4 + i) << 8) & 0x00ff00ffu) | 0x43004300u;
  if constexpr (kBits == 8) return minus(x & 0xff7fff7fu, x & 0xff80ff80u);
  return minus(x, kMiddle);
}

/// tq::scale_of() in two instructions.
__device__ __forceinline__ float worth_of(uint16_t stored) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(stored));
  return x * 0x1p-6f;
}

}  // namespace firstlight::cuda

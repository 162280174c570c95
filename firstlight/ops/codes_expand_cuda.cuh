// SPDX-License-Identifier: Apache-2.0
// Codes of 4 bits become bytes, and bytes are multiplied by 8-bit tensor cores.
#pragma once
#include "firstlight/ops/codes_warp_cuda.cuh"

namespace firstlight::cuda {

/// d = a b + c: a [16, 32] signed, b [32, 8] signed.
__device__ __forceinline__ void mma_s8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                       const int (&c)[4]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, "
      "%13};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}
/// The same with b unsigned.
__device__ __forceinline__ void mma_u8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                       const int (&c)[4]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, "
      "%13};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}

/// Codes of 4 bits are expanded to kOffset + level, 4 to 124: kOffset - size, and twice the size where the level is
/// positive. For a byte permutation replicates the top bit (here 0) of the byte it picks where the selector's own top
/// bit, here the sign, is set.
inline constexpr int kOffset = 64;
inline constexpr uint32_t kMinusOffsets = 0xc0c0c0c0u;  // four times -kOffset
/// Four sizes from the `first` on, each times `factor`, plus `base`.
__host__ __device__ constexpr uint32_t four_sizes(int base, int factor, uint32_t first) {
  uint32_t four = 0;
  for (uint32_t i = 0; i < 4; ++i) four |= static_cast<uint32_t>(base + factor * tq::level<4>(first + i)) << (8 * i);
  return four;
}
__device__ __forceinline__ uint32_t permute(uint32_t low, uint32_t high, uint32_t selector) {
  uint32_t x;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(x) : "r"(low), "r"(high), "r"(selector));
  return x;
}
/// Constants that stay in registers, because they come from a place of the lane's own in shared memory: if the compiler
/// knew them, or that all lanes have the same, it would move them to registers anew for every word, 200 instructions a
/// page.
struct ExpandTables {
  uint32_t less, twice, second, one;
  __host__ __device__ static constexpr ExpandTables known() {
    return {four_sizes(kOffset, -1, 0), four_sizes(0, 2, 0), 0x0100, 1};
  }
  // Permutations and logic share a pipe, which is the busiest: so these go where products are computed. With OR in
  // place of the product 32 x 32,768 keys took 246.7 us where L2 held them, with it 227.1 (eight warps, two blocks).
  __device__ __forceinline__ uint32_t upper_half(uint32_t x) const { return __dp2a_lo(x, second, 0u); }
  __device__ __forceinline__ uint32_t add(uint32_t a, uint32_t b) const {
    uint32_t x;
    asm("mad.lo.u32 %0, %1, %2, %3;" : "=r"(x) : "r"(a), "r"(one), "r"(b));
    return x;
  }
};
/// Of eight codes the first four, and the others.
struct Expanded {
  uint32_t low, high;
};
__device__ __forceinline__ Expanded expand(const ExpandTables& tables, uint32_t codes) {
  constexpr uint32_t less = four_sizes(kOffset, -1, 4), twice = four_sizes(0, 2, 4);
  const uint32_t sizes = codes & 0x77777777u;
  return {tables.add(permute(tables.less, less, sizes), permute(tables.twice, twice, codes)),
          tables.add(permute(tables.less, less, tables.upper_half(sizes)),
                     permute(tables.twice, twice, tables.upper_half(codes)))};
}

}  // namespace firstlight::cuda

// SPDX-License-Identifier: Apache-2.0
// Codes of 4 bits become bytes in registers, and bytes are multiplied by tensor cores.
#pragma once
#include "bench/kernels/tq4_ladder.cuh"

namespace firstlight::ladder {

/// Codes of 4 bits as bytes of 64 + level, the first four and the others. A byte permutation takes 64 - size by the
/// code's lower bits; the second one twice the size by the whole code, or zeros where the sign (the selector's top bit)
/// is set, since it then repeats the picked byte's own top bit.
struct Bytes {
  uint32_t low, high;
};
__host__ __device__ constexpr uint32_t four_levels(int base, int factor, uint32_t first) {
  uint32_t four = 0;
  for (uint32_t i = 0; i < 4; ++i) four |= static_cast<uint32_t>(base + factor * tq::level<4>(first + i)) << (8 * i);
  return four;
}
__device__ __forceinline__ uint32_t prmt(uint32_t low, uint32_t high, uint32_t selector) {
  uint32_t x;  // not __byte_perm, which leaves out the selector's top bits
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(x) : "r"(low), "r"(high), "r"(selector));
  return x;
}
__device__ __forceinline__ Bytes expand(uint32_t codes) {
  constexpr uint32_t less0 = four_levels(64, -1, 0), less1 = four_levels(64, -1, 4), twice0 = four_levels(0, 2, 0),
                     twice1 = four_levels(0, 2, 4);
  const uint32_t sizes = codes & 0x77777777u;
  return {prmt(less0, less1, sizes) + prmt(twice0, twice1, codes),
          prmt(less0, less1, sizes >> 16) + prmt(twice0, twice1, codes >> 16)};
}

/// d = a b + c, b signed (queries) or not (weights).
template <bool kSigned>
__device__ __forceinline__ void mma(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const int (&c)[4]) {
  if constexpr (kSigned) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, "
        "%13};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
  } else {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, "
        "%13};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
  }
}

}  // namespace firstlight::ladder

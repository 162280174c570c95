// SPDX-License-Identifier: Apache-2.0
// The kernels for x86-64 with AVX2 and FMA.
#include "firstlight/ops/kernels-deps.h"

#if defined(__x86_64__)
#define FIRSTLIGHT_SIMD simd_avx2
#define FIRSTLIGHT_LANES 8
#define FIRSTLIGHT_BF16_DOT 0
#define FIRSTLIGHT_TILE_VECTORS 2
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#include "firstlight/ops/kernels-inl.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace firstlight {
const CpuKernels* kernels_avx2() {
  static constexpr CpuKernels kKernels = FIRSTLIGHT_SIMD::table("avx2");
  return &kKernels;
}
}  // namespace firstlight
#else
namespace firstlight {
const CpuKernels* kernels_avx2() { return nullptr; }
}  // namespace firstlight
#endif

// SPDX-License-Identifier: Apache-2.0
// The kernels for x86-64 with AVX-512 and its bf16 dot product.
#include "firstlight/ops/kernels-deps.h"

#if defined(__x86_64__)
#define FIRSTLIGHT_SIMD simd_avx512_bf16
#define FIRSTLIGHT_LANES 16
#define FIRSTLIGHT_BF16_DOT 1
#define FIRSTLIGHT_TILE_VECTORS 4
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")
#endif
#include "firstlight/ops/kernels-inl.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace firstlight {
const CpuKernels* kernels_avx512_bf16() {
  static constexpr CpuKernels kKernels = FIRSTLIGHT_SIMD::table("avx512_bf16");
  return &kKernels;
}
}  // namespace firstlight
#else
namespace firstlight {
const CpuKernels* kernels_avx512_bf16() { return nullptr; }
}  // namespace firstlight
#endif

// SPDX-License-Identifier: Apache-2.0
// The kernels for any machine: 4 lanes, as SSE2 and NEON have.
#include "firstlight/ops/kernels-deps.h"

#define FIRSTLIGHT_SIMD simd_baseline
#define FIRSTLIGHT_LANES 4
#define FIRSTLIGHT_BF16_DOT 0
#if defined(__aarch64__)
#define FIRSTLIGHT_TILE_VECTORS 4  // 32 registers
#else
#define FIRSTLIGHT_TILE_VECTORS 2  // 16 registers
#endif
#include "firstlight/ops/kernels-inl.h"

namespace firstlight {
const CpuKernels* kernels_baseline() {
  static constexpr CpuKernels kKernels = FIRSTLIGHT_SIMD::table("baseline");
  return &kKernels;
}
}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// What a norm's kernels have in common, so that their results are the same bits.
#pragma once
#include <cuda_runtime.h>

namespace firstlight::cuda {

/// Threads that share a row's sum out, a quad of columns at a time.
__host__ __device__ inline int norm_threads(int quads) {
  const int wanted = (quads + 31) / 32 * 32;
  return wanted < 32 ? 32 : wanted > 1024 ? 1024 : wanted;
}

/// sum + x² + y² + z² + w², with the same roundings wherever it stands.
__device__ __forceinline__ float add_squares(float sum, float4 v) {
  const float front = __fmaf_rn(v.x, v.x, __fmul_rn(v.y, v.y)), back = __fmaf_rn(v.z, v.z, __fmul_rn(v.w, v.w));
  return __fadd_rn(sum, __fadd_rn(front, back));
}

}  // namespace firstlight::cuda

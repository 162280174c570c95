// SPDX-License-Identifier: Apache-2.0
// The rotation of q and k, with the same roundings in every kernel.
#pragma once
#include <cuda_runtime.h>

namespace firstlight::cuda {

/// (a, b) turned by the angle with that cosine and sine.
__device__ __forceinline__ float2 rotate(float a, float b, float2 angle) {
  return make_float2(__fmaf_rn(a, angle.x, -__fmul_rn(b, angle.y)), __fmaf_rn(b, angle.x, __fmul_rn(a, angle.y)));
}

}  // namespace firstlight::cuda

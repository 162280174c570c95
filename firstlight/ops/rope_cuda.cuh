// SPDX-License-Identifier: Apache-2.0
// The rotation of q and k by position, with the same roundings in every kernel.
#pragma once
#include <cuda_runtime.h>

#include <optional>
#include <vector>

#include "firstlight/ops/cuda_memory.cuh"
#include "firstlight/ops/cuda_pass.cuh"
#include "firstlight/ops/ops.h"

namespace firstlight::cuda {

/// What rope_and_store is of: heads of q, k and v side by side in each row.
struct RopeParams {
  Matrix<float> qkv;
  int n_rows = 0, n_single = 0, n_heads = 0;  ///< n_single: of the rows, as RowSet has it
  const void *q_norm = nullptr, *k_norm = nullptr;
  bool q_norm_bf16 = false, k_norm_bf16 = false;
  float eps = 0;
  const float2* angles = nullptr;  ///< [n_rows, head_dim / 2]: cosine and sine
  const RowOnDevice* rows = nullptr;
  const int32_t* pages = nullptr;
  KvLayer kv;
};

/// The rotations of a pass.
struct RopeOfPass {
  std::vector<double> frequencies;
  DeviceScratch frequency_memory, angle_memory[2];  ///< angles: of all rows, of the wanted ones
  bool has_angles[2] = {};
  std::optional<RopeParams> waiting;  ///< attention behind it may do it

  void clear() {
    has_angles[0] = has_angles[1] = false;
    waiting.reset();
  }
};

/// (a, b) turned by the angle with that cosine and sine.
__device__ __forceinline__ float2 rotate(float a, float b, float2 angle) {
  return make_float2(__fmaf_rn(a, angle.x, -__fmul_rn(b, angle.y)), __fmaf_rn(b, angle.x, __fmul_rn(a, angle.y)));
}

}  // namespace firstlight::cuda

// SPDX-License-Identifier: Apache-2.0
// What products with weights are asked for, and the one that takes any.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "firstlight/base/dtype.h"

namespace firstlight::cuda {

enum class Join : uint8_t {
  store,  ///< out = x wᵀ
  add,    ///< out += x wᵀ
  silu,   ///< out = silu(x w[0, n)ᵀ) * (x w[n, 2n)ᵀ)
};

struct ProductParams {
  const float* x = nullptr;
  int64_t x_stride = 0;
  const void* w = nullptr;     ///< [n or 2 n, k], contiguous
  const void* bias = nullptr;  ///< [n or 2 n], maybe null
  DType w_dtype = DType::bf16, bias_dtype = DType::bf16;
  int rows = 0;
  int n = 0, k = 0;
  float* out = nullptr;
  int64_t out_stride = 0;
};

/// What products need to know about a GPU.
struct GpuShape {
  int n_sms = 0;
  int shared_bytes = 0;  ///< that one block can have
  int capability = 0;    ///< 90: compute capability 9.0
  bool as_any = false;   ///< kernels of compute capability 9.0 alone are not wanted
};

/// Any rows, dtype and alignment; sums in f32.
void matmul_plain(const ProductParams& params, Join join, cudaStream_t stream);

}  // namespace firstlight::cuda

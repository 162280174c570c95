// SPDX-License-Identifier: Apache-2.0
// Products of few rows, bound by reading the weights.
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

struct MatvecParams {
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

inline constexpr int kMatvecRows = 8;

/// What few-row products need to know about a GPU.
struct GpuShape {
  int n_sms = 0;
  int shared_bytes = 0;  ///< that one block can have
  int capability = 0;    ///< 90: compute capability 9.0
  bool as_any = false;   ///< its own kernels are not wanted
};

/// Tensor cores, weights streamed; rows ≤ 8, bf16, x and w and their rows 16-byte aligned.
void matvec(const MatvecParams& params, Join join, const GpuShape& gpu, cudaStream_t stream);
/// Any rows, dtype and alignment; sums in f32.
void matmul_plain(const MatvecParams& params, Join join, cudaStream_t stream);

}  // namespace firstlight::cuda

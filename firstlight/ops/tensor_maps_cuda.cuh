// SPDX-License-Identifier: Apache-2.0
// Tensor maps of bf16 matrices, for copies of boxes by hardware (wgmma_cuda.cuh's copy_box()).
#pragma once
#include <cuda.h>

#include <cstdint>
#include <string>

#include "firstlight/ops/product_cuda.cuh"

namespace firstlight::cuda {

inline constexpr int kBoxColumns = 64, kBoxRowBytes = kBoxColumns * 2;

/// Why kernels with Hopper's own instructions (wgmma_cuda.cuh) are not for this GPU; empty: they are.
std::string why_not_hoppers(const GpuShape& gpu);

/// Makes maps of boxes of 64 columns, swizzled by 128 bytes. Compute capability 9.0 and above.
class TensorMaps {
 public:
  explicit TensorMaps(const GpuShape& gpu);
  /// Why this GPU or its driver cannot; empty: it can.
  const std::string& why_not() const { return why_not_; }
  /// Of [rows, columns], contiguous at `data`, a multiple of 16 bytes. `promotion`: what a copy brings to L2 beside
  /// what it asks for. Throws Error{device}.
  CUtensorMap of(const void* data, int64_t rows, int64_t columns, int box_rows,
                 CUtensorMapL2promotion promotion = CU_TENSOR_MAP_L2_PROMOTION_NONE) const;

 private:
  std::string why_not_;
  void* encode_ = nullptr;  ///< cuTensorMapEncodeTiled
};

}  // namespace firstlight::cuda

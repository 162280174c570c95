// SPDX-License-Identifier: Apache-2.0
// Products of up to 64 rows, bound by reading the weights: tensor cores fed by a ring of copies, all multiprocessors
// with the same share of the weights.
#pragma once
#include <cuda_bf16.h>

#include <cstdint>
#include <string>

#include "firstlight/ops/product_cuda.cuh"
#include "firstlight/ops/tensor_maps_cuda.cuh"

namespace firstlight::cuda {

inline constexpr int kSkinnyRows = 64;  ///< the most

/// A norm divided between the product that writes its x and those that read its result. The first rounds x * weight,
/// not yet divided by x's root mean square, to bf16 (as exact as rounding behind the division: both are relative), and
/// leaves sums of squares, [tile][kSkinnyRows]; the others multiply their sums by what follows from these.
struct SkinnyNorm {
  const __nv_bfloat16* weight = nullptr;  ///< [n]; null: no norm
  float* squares = nullptr;               ///< [n_squares(n)][kSkinnyRows]
  int n_squares = 0;
  float eps = 0;
};

/// As Join says; x and w bf16, contiguous, at multiples of 16 bytes, k a multiple of 8.
struct SkinnyProduct {
  const __nv_bfloat16* x = nullptr;  ///< [rows, k]
  int rows = 0;
  const void* w = nullptr;     ///< [n or 2 n, k]
  const void* bias = nullptr;  ///< [n or 2 n], maybe null
  bool bias_is_bf16 = false;
  int n = 0, k = 0;
  Join join = Join::store;
  float* out = nullptr;  ///< may be null where there is a twin of Join::silu
  int64_t out_stride = 0;
  __nv_bfloat16* twin = nullptr;  ///< [rows, n], maybe null: out rounded (Join::silu), or what readers of `behind` read
  SkinnyNorm before, behind;      ///< the norm that x is of; the norm of out, not of Join::silu
};

/// One thread at a time, one stream. Results are the same bits in each run, and a row's whatever rows are beside it.
class SkinnyProducts {
 public:
  explicit SkinnyProducts(const GpuShape& gpu);
  /// Why this GPU or its driver cannot; empty: it can.
  const std::string& why_not() const { return why_not_; }
  /// Why not by warpgroups; empty: by these.
  const std::string& why_by_warps() const { return why_by_warps_; }
  /// Of a product with n rows of weights.
  int n_squares(int n) const;
  /// Queues it on `stream`. Throws Error{device}.
  void multiply(const SkinnyProduct& product, cudaStream_t stream) const;

 private:
  const GpuShape gpu_;
  const TensorMaps maps_;
  const std::string why_not_, why_by_warps_;
};

/// The kernels by warps, which SkinnyProducts takes where it must.
void skinny_by_warps(const SkinnyProduct& product, const GpuShape& gpu, const TensorMaps& maps, cudaStream_t stream);

}  // namespace firstlight::cuda

// SPDX-License-Identifier: Apache-2.0
// Attention of a prompt by Hopper's own instructions: tensor maps and products of warpgroups.
#pragma once
#include <string>

#include "firstlight/ops/codes_cuda.cuh"

namespace firstlight::cuda {

/// Computes what attend_tiles() does, with last bits of its own; as there a row's bits do not depend on its tile.
class HopperAttention {
 public:
  explicit HopperAttention(const GpuShape& gpu);
  /// Why this GPU or its driver cannot; empty: it can.
  const std::string& why_not() const { return why_not_; }
  /// As attend_tiles() asks, and pages at multiples of a row of head_dim numbers, else Error{bug}. Queued on `stream`.
  /// Throws Error{device}.
  void attend(const AttendParams& params, const TileOnDevice* tiles, int n_tiles, cudaStream_t stream) const;
  /// The same over codes that expand_codes() has made pages of, and the exact pages: a row reads each as is_exact()
  /// says.
  void attend_expanded(const AttendCodesParams& params, std::byte* expanded, const TileOnDevice* tiles, int n_tiles,
                       cudaStream_t stream) const;

 private:
  std::string why_not_;
  void* encode_ = nullptr;  ///< cuTensorMapEncodeTiled
};

/// Pages [1, n_pages) of a sequence as keys and values in bf16 (of its table, which begins at `first` of the pass's),
/// so that a prompt's many rows need not expand and rotate them anew: page p to number first + p of `expanded`, [2 (k,
/// v), n_kv_heads, 64, head_dim] each. Codes of 4 or 8 bits, head_dim 64 or 128.
void expand_codes(const AttendCodesParams& params, int first, int n_pages, __nv_bfloat16* expanded,
                  cudaStream_t stream);

}  // namespace firstlight::cuda

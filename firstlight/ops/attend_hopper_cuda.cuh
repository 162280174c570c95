// SPDX-License-Identifier: Apache-2.0
// Attention of a prompt by Hopper's own instructions: tensor maps and products of warpgroups.
#pragma once
#include <string>

#include "firstlight/ops/codes_cuda.cuh"
#include "firstlight/ops/tensor_maps_cuda.cuh"

namespace firstlight::cuda {

/// Computes what attend_tiles() does, with last bits of its own; as there a row's bits do not depend on its tile.
class HopperAttention {
 public:
  explicit HopperAttention(const GpuShape& gpu)
      : maps_(gpu), why_not_(maps_.why_not().empty() ? why_not_hoppers(gpu) : maps_.why_not()) {}
  /// Why this GPU or its driver cannot; empty: it can.
  const std::string& why_not() const { return why_not_; }
  /// As attend_tiles() asks, and pages at multiples of a row of head_dim numbers, else Error{bug}. Queued on `stream`.
  /// Throws Error{device}.
  void attend(const AttendParams& params, const TileOnDevice* tiles, int n_tiles, cudaStream_t stream) const;
  /// Pages of codes that are made bf16, and who waits for whom: one memory, that of the ops that launch.
  struct SharedPages {
    int held = 0;                  ///< blocks that may be on the GPU at a time
    void* pages = nullptr;         ///< shared_page_bytes(); null: no tile reads codes, and no block waits for another
    uint32_t* counters = nullptr;  ///< shared_counter_bytes(), zeros between launches
  };
  static constexpr int kTeamPages = 4;  ///< of a block
  static uint64_t shared_page_bytes(int held, int head_dim);
  static uint64_t shared_counter_bytes(int held);
  /// Computes what attend_code_tiles() does, in the same manner: levels times scales, q and the weights are rounded to
  /// bf16. As that one asks; and exact pages at multiples of a row of head_dim numbers, rows of `out` at multiples of 8
  /// bytes, else Error{bug}.
  void attend_codes(const AttendCodesParams& params, const TileOnDevice* tiles, int n_tiles, const SharedPages& shared,
                    cudaStream_t stream) const;

 private:
  const TensorMaps maps_;
  const std::string why_not_;
};

}  // namespace firstlight::cuda

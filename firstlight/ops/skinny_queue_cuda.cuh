// SPDX-License-Identifier: Apache-2.0
// A product with tensor cores waits for the op behind it, since it may take a norm in.
#pragma once
#include <optional>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/ops/cuda_memory.cuh"
#include "firstlight/ops/ops.h"
#include "firstlight/ops/skinny_cuda.cuh"

namespace firstlight::cuda {

/// An rms_norm() as it was asked for.
struct NormOp {
  Matrix<const float> x;
  Weight weight;
  float eps = 0;
  Matrix<float> out;
};

struct SkinnyQueue {
  /// The norm that the last product took in: its result is not written, x * weight lies in its twin.
  struct FoldedNorm {
    NormOp norm;
    SkinnyNorm before;   ///< what its readers must know
    bool stale = false;  ///< its x has been written over: it cannot be computed any more
  };
  std::optional<SkinnyProduct> waiting;
  std::optional<FoldedNorm> folded;
  const float* unwritten = nullptr;  ///< a result of Join::silu of which there is but the copy that a product has read
  DeviceScratch squares;
  std::vector<DeviceScratch> retired;  ///< scratch that grew while a product waited, until the end of the pass

  /// A new pass.
  void clear() {
    waiting.reset();
    folded.reset();
    unwritten = nullptr;
  }
  /// Before something but that product reads x.
  void require_written(const float* x) const {
    if (x && x == unwritten)
      throw Error(ErrorKind::bug, "gates and ups are read behind the product that they were for");
  }
  bool has_folded(const float* x) const { return folded && folded->norm.out.data == x; }
  /// Whether the product that waits may take a norm in.
  bool can_fold(const NormOp& norm) const {
    if (!waiting) return false;
    const SkinnyProduct& last = *waiting;
    // One buffer of squares: of a product that reads a norm itself others may still be reading it.
    return last.join != Join::silu && !last.before.weight && !last.behind.weight && last.out == norm.x.data &&
           norm.out.data != norm.x.data && last.out_stride == norm.x.stride && last.rows == norm.x.rows &&
           last.n == norm.x.cols && norm.x.cols % 8 == 0 && norm.weight.dtype == DType::bf16;
  }
  void written(Matrix<float> out) {
    if (out.data == unwritten) unwritten = nullptr;
    if (!folded || !out.data) return;
    const auto overlaps = [&](const float* data, int64_t rows, int64_t stride) {
      return out.data < data + rows * stride && data < out.data + out.rows * out.stride;
    };
    const auto& [x, weight, eps, result] = folded->norm;
    folded->stale |= overlaps(x.data, x.rows, x.stride);
    if (overlaps(result.data, result.rows, result.stride)) folded.reset();
  }
};

}  // namespace firstlight::cuda

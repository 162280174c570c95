// SPDX-License-Identifier: Apache-2.0
#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ops/cpu_ops.h"

namespace firstlight {

void CpuOps::rms_norm(Matrix<const float> x, const Weight& weight, float eps, Matrix<float> out) {
  if (weight.rows * weight.cols != x.cols || out.rows != x.rows || out.cols != x.cols) {
    throw Error(ErrorKind::bug, str("norm of [", x.rows, ", ", x.cols, "] with ", weight.rows * weight.cols,
                                    " weights into [", out.rows, ", ", out.cols, "]"));
  }
  const float* weights = floats(&weight, q_norm_);
  constexpr int64_t kRows = 8;  // a piece of work
  share((x.rows + kRows - 1) / kRows, x.rows <= kRows, [&](int64_t piece, int) {
    for (int64_t i = piece * kRows; i < std::min(x.rows, (piece + 1) * kRows); ++i) {
      kernels_->rms_norm(x.row(i), weights, eps, x.cols, out.row(i));
    }
  });
}

}  // namespace firstlight

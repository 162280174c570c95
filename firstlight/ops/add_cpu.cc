// SPDX-License-Identifier: Apache-2.0
#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ops/cpu_ops.h"

namespace firstlight {

void CpuOps::add(Matrix<const float> y, Matrix<float> x) {
  if (y.rows != x.rows || y.cols != x.cols) {
    throw Error(ErrorKind::bug, str("sum of [", x.rows, ", ", x.cols, "] and [", y.rows, ", ", y.cols, "]"));
  }
  constexpr int64_t kRows = 16;  // a piece of work
  share((x.rows + kRows - 1) / kRows, x.rows <= kRows, [&](int64_t piece, int) {
    for (int64_t i = piece * kRows; i < std::min(x.rows, (piece + 1) * kRows); ++i)
      kernels_->add(y.row(i), x.cols, x.row(i));
  });
}

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ops/cpu_ops.h"

namespace firstlight {

void CpuOps::embed(std::span<const int> ids, const Weight& table, int64_t first_row, Matrix<float> out) {
  if (out.rows != static_cast<int64_t>(ids.size()) || out.cols != table.cols) {
    throw Error(ErrorKind::bug, str("embedding of ", ids.size(), " tokens, ", table.cols, " wide, into [", out.rows,
                                    ", ", out.cols, "]"));
  }
  if (table.dtype != DType::bf16 && table.dtype != DType::f32) {
    throw Error(ErrorKind::unsupported,
                str("the CPU back end computes with bf16 and f32 weights, found ", to_string(table.dtype)));
  }
  for (int64_t i = 0; i < out.rows; ++i) {
    const int64_t row = int64_t{ids[static_cast<size_t>(i)]} - first_row;
    if (row < 0 || row >= table.rows) {
      std::fill_n(out.row(i), out.cols, 0.0f);
    } else if (table.dtype == DType::bf16) {
      kernels_->widen(static_cast<const uint16_t*>(table.data) + row * table.cols, table.cols, out.row(i));
    } else {
      std::memcpy(out.row(i), static_cast<const float*>(table.data) + row * table.cols,
                  static_cast<size_t>(table.cols) * 4);
    }
  }
}

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "firstlight/ops/ops.h"

namespace firstlight {

void Ops::keep_rows(std::span<const AttentionSpan> spans, Matrix<float>& m) {
  int64_t n = 0;
  for (const AttentionSpan& span : spans) {
    if (span.row_begin != n)
      std::memmove(m.row(n), m.row(span.row_begin), static_cast<size_t>(span.n_rows * m.stride) * sizeof(float));
    n += span.n_rows;
  }
  m.rows = n;
}

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ops/ops.h"

namespace firstlight {

void Ops::likeliest(Matrix<const float> x, const Weight& w, int first_id, std::span<Likeliest> out) {
  if (static_cast<int64_t>(out.size()) != x.rows) {
    throw Error(ErrorKind::bug, str("the likeliest of ", x.rows, " rows into ", out.size()));
  }
  std::vector<float> rows(static_cast<size_t>(x.rows * w.rows));
  matmul(x, w, nullptr, {rows.data(), x.rows, w.rows, w.rows});
  for (int64_t i = 0; i < x.rows; ++i) {
    const float* logits = rows.data() + i * w.rows;
    Likeliest best{-INFINITY, -1};
    bool has_nan = false;
    for (int64_t c = 0; c < w.rows; ++c) {
      has_nan = has_nan || std::isnan(logits[c]);
      if (logits[c] > best.logit) best = {logits[c], first_id + static_cast<int>(c)};
    }
    if (has_nan || !std::isfinite(best.logit)) best.id = -1;
    out[static_cast<size_t>(i)] = best;
  }
}

}  // namespace firstlight

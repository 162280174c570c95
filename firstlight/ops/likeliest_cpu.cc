// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ops/ops.h"
#include "firstlight/ops/sampling.h"

namespace firstlight {

Likeliest likeliest_of(std::span<const float> logits, int first_id) {
  Likeliest best{-INFINITY, -1};
  bool has_nan = false;
  for (size_t i = 0; i < logits.size(); ++i) {
    has_nan = has_nan || std::isnan(logits[i]);
    if (logits[i] > best.logit) best = {logits[i], first_id + static_cast<int>(i)};
  }
  if (has_nan) return {NAN, -1};
  if (!std::isfinite(best.logit)) best.id = -1;
  return best;
}

void Ops::likeliest(Matrix<const float> x, const Weight& w, int first_id, std::span<Likeliest> out) {
  if (static_cast<int64_t>(out.size()) != x.rows) {
    throw Error(ErrorKind::bug, str("the likeliest of ", x.rows, " rows into ", out.size()));
  }
  std::vector<float> rows(static_cast<size_t>(x.rows * w.rows));
  if (w.rows > 0) matmul(x, w, nullptr, {rows.data(), x.rows, w.rows, w.rows});
  const auto n = static_cast<size_t>(w.rows);
  for (size_t i = 0; i < out.size(); ++i) out[i] = likeliest_of({rows.data() + i * n, n}, first_id);
}

void Ops::draw(Matrix<const float> x, const Weight& w, std::span<const Draw> draws, std::span<int> out,
               const LogitsOfRanks* ranks) {
  if (ranks != nullptr) throw Error(ErrorKind::bug, "on the CPU one rank alone draws, from logits that came together");
  if (static_cast<int64_t>(out.size()) != x.rows || draws.size() != out.size()) {
    throw Error(ErrorKind::bug, str(draws.size(), " draws from ", x.rows, " rows into ", out.size()));
  }
  const auto n = static_cast<size_t>(w.rows);
  std::vector<float> rows(out.size() * n);
  if (!rows.empty()) matmul(x, w, nullptr, {rows.data(), x.rows, w.rows, w.rows});
  for (size_t i = 0; i < out.size(); ++i) out[i] = draw_from({rows.data() + i * n, n}, draws[i]);
}

}  // namespace firstlight

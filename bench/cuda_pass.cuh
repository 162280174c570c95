// SPDX-License-Identifier: Apache-2.0
// A forward pass as the CUDA back end is given it, for benches: sequences with pages dealt in no order, and its time.
#pragma once
#include <functional>
#include <span>
#include <vector>

#include "cuda_bench.cuh"
#include "firstlight/ops/ops.h"

namespace firstlight::bench {

/// Seconds of a pass of n sequences, `rows` each, at a position; replayed if it can be. Over `codes` each has exact
/// pages of its own.
class Pass {
 public:
  Pass(int n, int64_t rows, int64_t position, int64_t n_pages, bool codes = false)
      : ids_(static_cast<size_t>(n * rows), 17) {
    const int64_t each = (position + rows - 1) / kPageTokens + 1;
    int32_t n_exact = 0;
    for (int s = 0; s < n; ++s) {
      std::vector<int32_t>&own = pages_.emplace_back(), &exact = exact_.emplace_back();
      for (int64_t p = 0; p < each; ++p) {
        own.push_back(static_cast<int32_t>((s * each + p) * 7919 % n_pages));
        exact.push_back(is_exact(p, position / kPageTokens) ? n_exact++ : -1);
      }
    }
    for (size_t s = 0; s < pages_.size(); ++s) {
      const int64_t row = static_cast<int64_t>(s) * rows;
      const int32_t* const exact = codes ? exact_[s].data() : nullptr;
      spans.push_back({row, rows, position, pages_[s].data(), exact});
      wanted.push_back({row + rows - 1, 1, position + rows - 1, pages_[s].data(), exact});
    }
    if (rows == 1) wanted = spans;
    picked.resize(static_cast<size_t>(n));
  }
  double seconds(Ops& ops, const std::function<void(std::span<const int>)>& fn, bool picks = false) {
    const auto once = [&] {
      const Matrix<float> logits{picks ? nullptr : logits_.data(), static_cast<int64_t>(spans.size()), 1, 200000};
      const std::span<Likeliest> likeliest = picks ? std::span<Likeliest>(picked) : std::span<Likeliest>();
      if (!ops.begin({ids_, spans, wanted, logits, likeliest}, true)) fn(ids_);
      ops.end();
    };
    for (int i = 0; i < 4; ++i) once();
    return median_seconds(7, once);
  }
  /// Of one pass that is not the first of its shape, and whose wanted rows are picked.
  double once(Ops& ops, const std::function<void(std::span<const int>)>& fn) {
    return median_seconds(1, [&] {
      ops.begin({.ids = ids_, .spans = spans, .wanted = wanted, .likeliest = std::span(picked).first(wanted.size())},
                false);
      fn(ids_);
      ops.end();
    });
  }
  std::vector<AttentionSpan> spans, wanted;
  std::vector<Likeliest> picked;

 private:
  std::vector<int> ids_;
  std::vector<std::vector<int32_t>> pages_, exact_;
  static inline std::vector<float> logits_ = std::vector<float>(64 * 200000);
};

}  // namespace firstlight::bench

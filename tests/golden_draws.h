// SPDX-License-Identifier: Apache-2.0
// For tests: what a runner draws, beside draws on the host from the logits it gives.
#pragma once
#include <algorithm>
#include <vector>

#include "golden.h"

namespace firstlight {

/// What one pass draws for up to 40 rows is what draw_from() makes of their logits.
inline void expect_rows_drawn_as_on_the_host(Runner& runner, const std::vector<int>& ids) {
  const auto vocab = static_cast<size_t>(runner.config().vocab_size);
  const size_t n = std::min<size_t>(ids.size(), 40);
  PageTable pages(runner.pool());
  ASSERT_TRUE(pages.try_reserve(static_cast<int64_t>(n)));
  const SequenceChunk chunk{std::span(ids).first(n), 0, &pages, static_cast<int>(n)};
  std::vector<float> logits;
  runner.forward({&chunk, 1}, logits);
  std::vector<Draw> draws;
  for (size_t i = 0; i < n; ++i) draws.push_back({{.temperature = 1 + 0.1 * static_cast<double>(i), .seed = 3}, {}, i});
  std::vector<int> drawn;
  runner.forward_drawn({&chunk, 1}, draws, drawn);
  ASSERT_EQ(drawn.size(), n);
  for (size_t i = 0; i < n; ++i) {
    EXPECT_EQ(drawn[i], draw_from(std::span(logits).subspan(i * vocab, vocab), draws[i])) << "row " << i << " of " << n;
  }
}

}  // namespace firstlight

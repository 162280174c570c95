// SPDX-License-Identifier: Apache-2.0
#include "firstlight/engine/prefix.h"

#include <algorithm>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"

namespace firstlight {

int64_t reusable_tokens(int64_t n_prompt, int64_t n_cached) noexcept {
  return std::max<int64_t>(0, std::min(n_cached, n_prompt - kMatrixRows)) / kPageTokens * kPageTokens;
}

void extend_prefix(Runner& runner, Prefix& prefix, std::span<const int> prompt, int64_t n_tokens,
                   const std::stop_token& stop) {
  constexpr int64_t kChunk = 512;  // as the engine's
  if (!prefix.pages->try_reserve(n_tokens)) {
    throw Error(ErrorKind::out_of_memory,
                str("a prefix of ", n_tokens, " tokens, the KV cache holds ", runner.pool().n_pages() * kPageTokens));
  }
  std::vector<float> no_logits;
  while (prefix.n_tokens < n_tokens) {
    if (stop.stop_requested()) throw Interrupted();
    const int64_t begin = prefix.n_tokens, n = std::min(kChunk, n_tokens - begin);
    const SequenceChunk chunk{prompt.subspan(static_cast<size_t>(begin), static_cast<size_t>(n)), begin,
                              prefix.pages.get(), 0};
    runner.forward({&chunk, 1}, no_logits);
    prefix.n_tokens += n;
    prefix.pages->release_exact(std::max<int64_t>(0, prefix.n_tokens - kPageTokens));
  }
}

}  // namespace firstlight

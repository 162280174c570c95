// SPDX-License-Identifier: Apache-2.0
#include "firstlight/engine/prefix.h"

#include <algorithm>

#include "firstlight/model/runner.h"

namespace firstlight {

int64_t reusable_tokens(int64_t n_prompt, int64_t n_cached) noexcept {
  return std::max<int64_t>(0, std::min(n_cached, n_prompt - kMatrixRows)) / kPageTokens * kPageTokens;
}

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// Keys and values of a prompt's first tokens.
#pragma once
#include <cstdint>
#include <memory>

#include "firstlight/kv/page_pool.h"

namespace firstlight {

struct Prefix {
  std::unique_ptr<PageTable> pages;  ///< of the runner's pools, with the exact pages that go with the tokens
  int64_t n_tokens = 0;
};

/// Of `n_cached` first tokens of a prompt, whose keys and values are there, those from which it can go on and give the
/// logits that it gives from its beginning, on the CPU to the bit: whole pages, that leave kMatrixRows tokens at least.
int64_t reusable_tokens(int64_t n_prompt, int64_t n_cached) noexcept;

}  // namespace firstlight

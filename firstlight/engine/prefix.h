// SPDX-License-Identifier: Apache-2.0
// Keys and values of a prompt's first tokens, computed before the prompt is.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <stop_token>

#include "firstlight/kv/page_pool.h"
#include "firstlight/model/runner.h"

namespace firstlight {

struct Prefix {
  std::unique_ptr<PageTable> pages;  ///< of the runner's pools, with the exact pages that go with the tokens
  int64_t n_tokens = 0;
};

/// Of `n_cached` first tokens of a prompt, whose keys and values are there, those from which it can go on and give the
/// logits that it gives from its beginning, on the CPU to the bit: whole pages, that leave kMatrixRows tokens at least.
int64_t reusable_tokens(int64_t n_prompt, int64_t n_cached) noexcept;

/// Computes the prompt's tokens from prefix.n_tokens to `n_tokens`, both whole pages, and counts them. Keeps the exact
/// pages of PageTable::hold_exact_before(n_tokens). The runner takes 512 tokens at once. Throws Error{out_of_memory} if
/// there are no pages for so many tokens, what forward() throws, Interrupted.
void extend_prefix(Runner& runner, Prefix& prefix, std::span<const int> prompt, int64_t n_tokens,
                   const std::stop_token& stop = {});

}  // namespace firstlight

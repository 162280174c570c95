// SPDX-License-Identifier: Apache-2.0
#include "firstlight/kv/page_pool.h"

#include <limits>
#include <utility>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"

namespace firstlight {

PagePool::PagePool(int64_t n_pages) : n_pages_(n_pages) {
  if (n_pages < 0 || n_pages > std::numeric_limits<int32_t>::max()) {
    throw Error(ErrorKind::bad_input, str("KV page pool: ", n_pages, " pages, expected 0 to 2147483647"));
  }
  taken_.assign(static_cast<size_t>(n_pages), 0);
  free_.reserve(static_cast<size_t>(n_pages));
  for (int64_t page = n_pages - 1; page >= 0; --page) free_.push_back(static_cast<int32_t>(page));
}

std::optional<int32_t> PagePool::try_take() {
  if (free_.empty()) return std::nullopt;
  const int32_t page = free_.back();  // last in, first out: the page most likely still in a cache
  free_.pop_back();
  taken_[static_cast<size_t>(page)] = 1;
  return page;
}

void PagePool::give_back(int32_t page) {
  if (page < 0 || page >= n_pages_ || !taken_[static_cast<size_t>(page)]) {
    throw Error(ErrorKind::bug, str("KV page ", page, " given back, but it is not taken (pool of ", n_pages_, ")"));
  }
  taken_[static_cast<size_t>(page)] = 0;
  free_.push_back(page);  // cannot allocate: the constructor reserved n_pages
}

PageTable::~PageTable() {
  // In reverse, so that the next sequence gets the same pages in the same order.
  for (auto page = pages_.rbegin(); page != pages_.rend(); ++page) pool_->give_back(*page);
  for (auto page = exact_.rbegin(); page != exact_.rend(); ++page) {
    if (*page >= 0) exact_pool_->give_back(*page);
  }
}

PageTable::PageTable(PageTable&& other) noexcept
    : pool_(other.pool_),
      exact_pool_(other.exact_pool_),
      pages_(std::exchange(other.pages_, {})),
      exact_(std::exchange(other.exact_, {})) {}

bool PageTable::try_reserve(int64_t n_tokens) {
  if (n_tokens <= capacity()) return true;
  const int64_t wanted = n_tokens / kPageTokens + (n_tokens % kPageTokens != 0 ? 1 : 0);
  const int64_t missing = wanted - static_cast<int64_t>(pages_.size());
  if (missing > pool_->n_free()) return false;
  pages_.reserve(static_cast<size_t>(wanted));
  if (exact_pool_ != nullptr) exact_.resize(static_cast<size_t>(wanted), -1);
  for (int64_t i = 0; i < missing; ++i) pages_.push_back(*pool_->try_take());
  return true;
}

void PageTable::hold_exact(int64_t begin, int64_t end) {
  if (exact_pool_ == nullptr) return;
  const int64_t first = begin / kPageTokens, last = (end - 1) / kPageTokens;
  for (int64_t page = 0; page <= first && page * kPageTokens < begin; ++page) {  // holds tokens before `begin`
    if (is_exact(page, first) && exact_[static_cast<size_t>(page)] < 0) {
      throw Error(ErrorKind::bug, str("token ", begin, " reads page ", page,
                                      " of its sequence exactly, but its bf16 "
                                      "copy was given back"));
    }
  }
  for (int64_t page = first; page <= last; ++page) take_exact(page);
}

void PageTable::hold_exact_before(int64_t position) {
  if (exact_pool_ == nullptr) return;
  const int64_t n = position / kPageTokens;
  for (int64_t page = 0; page < n; ++page) {
    if (is_exact(page, n - 1)) take_exact(page);
  }
}

void PageTable::take_exact(int64_t page) {
  int32_t& exact = exact_[static_cast<size_t>(page)];
  if (exact >= 0) return;
  const std::optional<int32_t> taken = exact_pool_->try_take();
  if (!taken) {
    throw Error(ErrorKind::out_of_memory, str("all ", exact_pool_->n_pages(),
                                              " exact KV pages are in use: fewer "
                                              "sequences, or a smaller pass, would do"));
  }
  exact = *taken;
}

void PageTable::release_exact(int64_t begin) {
  const int64_t last = begin / kPageTokens;
  for (size_t page = 0; page < exact_.size(); ++page) {
    if (exact_[page] < 0 || is_exact(static_cast<int64_t>(page), last)) continue;
    exact_pool_->give_back(std::exchange(exact_[page], -1));
  }
}

}  // namespace firstlight

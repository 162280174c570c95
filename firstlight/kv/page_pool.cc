// SPDX-License-Identifier: Apache-2.0
#include "firstlight/kv/page_pool.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"

namespace firstlight {

PagePool::PagePool(int64_t n_pages) : n_pages_(n_pages) {
  if (n_pages < 0 || n_pages > std::numeric_limits<int32_t>::max()) {
    throw Error(ErrorKind::bad_input, str("KV page pool: ", n_pages, " pages, expected 0 to 2147483647"));
  }
  state_.resize(static_cast<size_t>(n_pages));
  free_.reserve(static_cast<size_t>(n_pages));
  for (int64_t page = n_pages - 1; page >= 0; --page) free_.push_back(static_cast<int32_t>(page));
}

std::optional<int32_t> PagePool::try_take() {
  int32_t page = oldest_;
  if (!free_.empty()) {
    page = free_.back();  // last in, first out: the page most likely still in a cache
    free_.pop_back();
  } else if (page >= 0) {
    if (on_evict_) on_evict_(page);
    unlink(page);
    state_[static_cast<size_t>(page)].kept = false;
  } else {
    return std::nullopt;
  }
  state_[static_cast<size_t>(page)].n_holders = 1;
  return page;
}

PagePool::State& PagePool::checked(int32_t page, const char* what) {
  if (page >= 0 && page < n_pages_) {
    State& state = state_[static_cast<size_t>(page)];
    if (state.n_holders > 0) return state;
  }
  throw Error(ErrorKind::bug, str("KV page ", page, " ", what, ", but it is not taken (pool of ", n_pages_, ")"));
}

void PagePool::share(int32_t page) {
  if (page >= 0 && page < n_pages_ && is_kept(page) && n_holders(page) == 0) {
    unlink(page);
    state_[static_cast<size_t>(page)].n_holders = 1;
    return;
  }
  ++checked(page, "shared").n_holders;
}

void PagePool::give_back(int32_t page) {
  State& state = checked(page, "given back");
  if (--state.n_holders > 0) return;
  if (state.kept)
    link(page);
  else
    free_.push_back(page);  // cannot allocate: the constructor reserved n_pages
}

void PagePool::keep(int32_t page) { checked(page, "kept").kept = true; }

void PagePool::link(int32_t page) {
  State& state = state_[static_cast<size_t>(page)];
  state.before = newest_;
  state.after = -1;
  (newest_ >= 0 ? state_[static_cast<size_t>(newest_)].after : oldest_) = page;
  newest_ = page;
  ++n_idle_;
}

void PagePool::unlink(int32_t page) {
  const State& state = state_[static_cast<size_t>(page)];
  (state.before >= 0 ? state_[static_cast<size_t>(state.before)].after : oldest_) = state.after;
  (state.after >= 0 ? state_[static_cast<size_t>(state.after)].before : newest_) = state.before;
  --n_idle_;
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
  if (!has_exact_before(begin)) {
    throw Error(ErrorKind::bug, str("token ", begin,
                                    " reads pages of its sequence exactly, but not all of their bf16 "
                                    "copies are held"));
  }
  for (int64_t page = begin / kPageTokens; page <= (end - 1) / kPageTokens; ++page) take_exact(page);
}

bool PageTable::has_exact_before(int64_t position) const noexcept {
  if (exact_pool_ == nullptr) return true;
  const int64_t last = position / kPageTokens;
  for (int64_t page = 0; page <= last && page * kPageTokens < position; ++page) {  // holds tokens before it
    if (is_exact(page, last) && exact_[static_cast<size_t>(page)] < 0) return false;
  }
  return true;
}

void PageTable::hold_exact_before(int64_t position) {
  if (exact_pool_ == nullptr) return;
  const int64_t n = position / kPageTokens;
  for (int64_t page = 0; page < n; ++page) {
    if (is_exact(page, n - 1)) take_exact(page);
  }
}

int32_t PageTable::take_exact_page() {
  const std::optional<int32_t> taken = exact_pool_->try_take();
  if (!taken) {
    throw Error(ErrorKind::out_of_memory, str("all ", exact_pool_->n_pages(),
                                              " exact KV pages are in use: fewer "
                                              "sequences, or a smaller pass, would do"));
  }
  return *taken;
}

void PageTable::take_exact(int64_t page) {
  int32_t& exact = exact_[static_cast<size_t>(page)];
  if (exact < 0) exact = take_exact_page();
}

void PageTable::release_exact(int64_t begin) {
  const int64_t last = begin / kPageTokens;
  for (size_t page = 0; page < exact_.size(); ++page) {
    if (exact_[page] < 0 || is_exact(static_cast<int64_t>(page), last)) continue;
    exact_pool_->give_back(std::exchange(exact_[page], -1));
  }
}

void PageTable::append_shared(int32_t page, int32_t exact) {
  pages_.reserve(pages_.size() + 1);
  if (exact_pool_ != nullptr) exact_.reserve(pages_.size() + 1);
  pool_->share(page);
  pages_.push_back(page);
  if (exact_pool_ == nullptr) return;
  exact_.push_back(-1);
  if (exact < 0) return;
  exact_pool_->share(exact);
  exact_.back() = exact;
}

PageTable PageTable::fork(int64_t n_tokens) const {
  PageTable copy(*pool_, exact_pool_);
  const auto n = static_cast<size_t>((n_tokens + kPageTokens - 1) / kPageTokens);
  for (size_t i = 0; i < n; ++i) copy.append_shared(pages_.at(i), exact_pool_ != nullptr ? exact_[i] : -1);
  return copy;
}

bool PageTable::try_own(int64_t begin, const Copies& copies) {
  const auto is_ours = [](const PagePool& pool, int32_t page) {
    return pool.n_holders(page) == 1 && !pool.is_kept(page);
  };
  for (auto i = static_cast<size_t>(begin / kPageTokens); i < pages_.size(); ++i) {
    const bool has_content = static_cast<int64_t>(i) * kPageTokens < begin;
    if (!is_ours(*pool_, pages_[i])) {
      const std::optional<int32_t> taken = pool_->try_take();
      if (!taken) return false;
      if (has_content) copies.page(pages_[i], *taken);
      pool_->give_back(std::exchange(pages_[i], *taken));
    }
    if (exact_pool_ == nullptr || exact_[i] < 0 || is_ours(*exact_pool_, exact_[i])) continue;
    if (!has_content) {  // what is written to it is taken by hold_exact()
      exact_pool_->give_back(std::exchange(exact_[i], -1));
      continue;
    }
    const int32_t taken = take_exact_page();
    copies.exact(exact_[i], taken);
    exact_pool_->give_back(std::exchange(exact_[i], taken));
  }
  return true;
}

bool PageTable::try_truncate(int64_t n_tokens) {
  if (n_tokens > capacity()) throw Error(ErrorKind::bug, str("roll-back to ", n_tokens, " tokens of ", capacity()));
  if (!has_exact_before(n_tokens)) return false;
  const auto n = static_cast<size_t>((n_tokens + kPageTokens - 1) / kPageTokens);
  while (pages_.size() > n) {
    pool_->give_back(pages_.back());
    pages_.pop_back();
    if (exact_pool_ == nullptr) continue;
    if (exact_.back() >= 0) exact_pool_->give_back(exact_.back());
    exact_.pop_back();
  }
  return true;
}

}  // namespace firstlight

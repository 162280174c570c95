// SPDX-License-Identifier: Apache-2.0
#include "firstlight/kv/page_pool.h"

#include <limits>
#include <utility>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"

namespace firstlight {

std::string_view to_string(KvKind kind) noexcept {
  switch (kind) {
    case KvKind::f32:
      return "f32";
    case KvKind::bf16:
      return "bf16";
  }
  return "?";
}

std::optional<KvKind> kv_kind_from(std::string_view name) noexcept {
  for (const KvKind kind : {KvKind::f32, KvKind::bf16}) {
    if (name == to_string(kind)) return kind;
  }
  return std::nullopt;
}

int kv_element_bytes(KvKind kind) noexcept { return kind == KvKind::f32 ? 4 : 2; }

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
}

PageTable::PageTable(PageTable&& other) noexcept : pool_(other.pool_), pages_(std::exchange(other.pages_, {})) {}

bool PageTable::try_reserve(int64_t n_tokens) {
  if (n_tokens <= capacity()) return true;
  const int64_t wanted = n_tokens / kPageTokens + (n_tokens % kPageTokens != 0 ? 1 : 0);
  const int64_t missing = wanted - static_cast<int64_t>(pages_.size());
  if (missing > pool_->n_free()) return false;
  pages_.reserve(static_cast<size_t>(wanted));
  for (int64_t i = 0; i < missing; ++i) pages_.push_back(*pool_->try_take());
  return true;
}

}  // namespace firstlight

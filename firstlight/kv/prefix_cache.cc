// SPDX-License-Identifier: Apache-2.0
#include "firstlight/kv/prefix_cache.h"

#include <algorithm>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/base/hash.h"
#include "firstlight/base/str.h"

namespace firstlight {

namespace {

std::span<const int> tokens_of_page(std::span<const int> tokens, int64_t page) {
  return tokens.subspan(static_cast<size_t>(page * kPageTokens), kPageTokens);
}

}  // namespace

PrefixCache::PrefixCache(PagePool& pool, PagePool* exact) : pool_(pool), exact_pool_(exact) {
  pool_.on_evict([this](int32_t page) { forget(page); });
  if (exact_pool_ == nullptr) return;
  exact_pool_->on_evict([this](int32_t page) {
    const auto found = page_of_exact_.find(page);
    if (found == page_of_exact_.end()) return;
    entries_.at(found->second).exact = -1;
    page_of_exact_.erase(found);
  });
}

PrefixCache::~PrefixCache() {
  pool_.on_evict({});
  if (exact_pool_ != nullptr) exact_pool_->on_evict({});
}

uint64_t PrefixCache::hash_of(int32_t parent, std::span<const int> tokens) {
  std::array<int, kPageTokens + 1> key{};
  key[0] = parent;
  std::copy(tokens.begin(), tokens.end(), key.begin() + 1);
  return xxh3_64(std::as_bytes(std::span(key)));
}

int32_t PrefixCache::find(int32_t parent, std::span<const int> tokens) const {
  const auto [begin, end] = by_hash_.equal_range(hash_of(parent, tokens));
  for (auto each = begin; each != end; ++each) {
    const Entry& entry = entries_.at(each->second);
    if (entry.parent == parent && std::equal(tokens.begin(), tokens.end(), entry.tokens.begin())) return each->second;
  }
  return -1;
}

int64_t PrefixCache::match(std::span<const int> tokens, int64_t most_pages, PageTable& table) {
  if (!table.pages().empty()) throw Error(ErrorKind::bug, "a prefix is looked up for a sequence that has pages");
  std::vector<int32_t> found;
  for (int32_t parent = -1; static_cast<int64_t>(found.size()) < most_pages;) {
    parent = find(parent, tokens_of_page(tokens, static_cast<int64_t>(found.size())));
    if (parent < 0) break;
    found.push_back(parent);
  }
  const auto exact_of = [&](int64_t i) { return entries_.at(found[static_cast<size_t>(i)]).exact; };
  auto n = static_cast<int64_t>(found.size());
  const auto can_end = [&](int64_t end) {  // at token end * kPageTokens
    for (int64_t i = 0; i < end; ++i) {
      if (is_exact(i, end) && exact_of(i) < 0) return false;
    }
    return true;
  };
  if (exact_pool_ != nullptr) {
    while (n > 0 && !can_end(n)) --n;
  }
  for (int64_t i = 0; i < n; ++i)
    table.append_shared(found[static_cast<size_t>(i)], exact_pool_ != nullptr && is_exact(i, n) ? exact_of(i) : -1);
  return n * kPageTokens;
}

void PrefixCache::insert(std::span<const int> tokens, int64_t n_pages, const PageTable& table) {
  int32_t parent = -1;
  for (int64_t i = 0; i < n_pages; ++i) {
    const int32_t page = table.pages()[static_cast<size_t>(i)];
    const auto page_tokens = tokens_of_page(tokens, i);
    const int32_t known = find(parent, page_tokens);
    if (known >= 0 && known != page) return;
    if (known < 0) {
      Entry entry{.parent = parent, .hash = hash_of(parent, page_tokens)};
      std::copy(page_tokens.begin(), page_tokens.end(), entry.tokens.begin());
      pool_.keep(page);
      by_hash_.emplace(entry.hash, page);
      entries_.emplace(page, entry);
      if (parent >= 0) ++entries_.at(parent).n_children;
    }
    if (exact_pool_ != nullptr) keep_exact(entries_.at(page), page, table.exact()[static_cast<size_t>(i)]);
    parent = page;
  }
}

void PrefixCache::keep_exact(Entry& entry, int32_t page, int32_t exact) {
  if (exact < 0 || entry.exact >= 0) return;
  exact_pool_->keep(exact);
  entry.exact = exact;
  page_of_exact_.emplace(exact, page);
}

void PrefixCache::forget(int32_t page) {
  const auto found = entries_.find(page);
  if (found == entries_.end()) return;
  const Entry& entry = found->second;
  if (entry.n_children > 0) throw Error(ErrorKind::bug, str("KV page ", page, " goes before those behind it"));
  if (entry.parent >= 0) --entries_.at(entry.parent).n_children;
  if (entry.exact >= 0) page_of_exact_.erase(entry.exact);
  const auto [begin, end] = by_hash_.equal_range(entry.hash);
  by_hash_.erase(std::find_if(begin, end, [&](const auto& each) { return each.second == page; }));
  entries_.erase(found);
}

}  // namespace firstlight

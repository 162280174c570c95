// SPDX-License-Identifier: Apache-2.0
// Full pages of prompts, found again by their tokens and all tokens before them: what requests with the same beginning
// share.
#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <unordered_map>

#include "firstlight/kv/page_pool.h"

namespace firstlight {

/// A tree of pages: a page's parent is the page before it. A page is known by its parent and its 64 tokens; both are
/// compared, the hash (XXH3-64) only finds them. Pages that nobody holds stay until the pool needs them, the one given
/// back longest ago first; whoever holds a page holds those before it and gives them back after it, so no page goes
/// before its children. Not thread-safe: the engine's thread owns it.
class PrefixCache {
 public:
  /// Of a pool and, beside codes, the pool of exact pages, or null. They must outlive it; it is told of their evictions
  /// from now on.
  PrefixCache(PagePool& pool, PagePool* exact);
  ~PrefixCache();  ///< what is kept stays so, unknown
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;

  /// Puts the longest known beginning of `tokens`, of at most most_pages pages, into an empty table; how many tokens
  /// that is. Beside codes it ends where the exact pages that the next token reads are there as well.
  int64_t match(std::span<const int> tokens, int64_t most_pages, PageTable& table);
  /// Makes the table's first n_pages pages known, which hold `tokens` and are not written again, and the exact pages
  /// beside them. Ends at a page that is known already as another one: two sequences computed it at once.
  void insert(std::span<const int> tokens, int64_t n_pages, const PageTable& table);

  int64_t n_pages() const noexcept { return static_cast<int64_t>(entries_.size()); }

 private:
  using PageTokens = std::array<int, kPageTokens>;
  struct Entry {
    int32_t parent = -1;
    int32_t exact = -1;
    int32_t n_children = 0;
    uint64_t hash = 0;
    PageTokens tokens{};
  };
  static uint64_t hash_of(int32_t parent, std::span<const int> tokens);
  /// The page of these 64 tokens behind `parent` (−1: the first), or −1.
  int32_t find(int32_t parent, std::span<const int> tokens) const;
  void keep_exact(Entry& entry, int32_t page, int32_t exact);
  void forget(int32_t page);

  PagePool& pool_;
  PagePool* exact_pool_;
  std::unordered_map<int32_t, Entry> entries_;          // by page
  std::unordered_multimap<uint64_t, int32_t> by_hash_;  // pages
  std::unordered_map<int32_t, int32_t> page_of_exact_;
};

}  // namespace firstlight

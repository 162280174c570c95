// SPDX-License-Identifier: Apache-2.0
// Book-keeping of the paged KV cache: which pages are free, and which belong to a sequence. The bytes lie with the back
// end. A compressed cache has two pools: pages of codes, which every token has, and exact pages (bf16) for the few
// that matter most to a query.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "firstlight/device/device.h"
#include "firstlight/kv/kv_kind.h"

namespace firstlight {

/// Where the pages of one rank lie: all layers of page p, one after another, at pages + p * page_bytes; exact pages
/// likewise (none: null).
struct RankPages {
  Device device;
  std::byte* pages = nullptr;
  uint64_t page_bytes = 0;
  std::byte* exact = nullptr;
  uint64_t exact_page_bytes = 0;
};

/// A fixed number of pages, handed out one at a time. Not thread-safe: the engine's thread owns it.
class PagePool {
 public:
  explicit PagePool(int64_t n_pages);
  int64_t n_pages() const noexcept { return n_pages_; }
  int64_t n_free() const noexcept { return static_cast<int64_t>(free_.size()); }
  /// Null when none is free: not an error, the scheduler waits.
  std::optional<int32_t> try_take();
  void give_back(int32_t page);

 private:
  int64_t n_pages_;
  std::vector<int32_t> free_;
  std::vector<char> taken_;
};

/// A sequence's pages in order: token t lies in page pages[t / 64], slot t % 64. Returns its pages on destruction.
class PageTable {
 public:
  /// `exact`: the pool of bf16 pages beside codes, or null. Both pools must outlive the table.
  explicit PageTable(PagePool& pool, PagePool* exact = nullptr) : pool_(&pool), exact_pool_(exact) {}
  ~PageTable();
  PageTable(PageTable&&) noexcept;
  PageTable& operator=(PageTable&&) = delete;
  /// Makes room for n_tokens in all; false (and unchanged) if the pool has too few.
  bool try_reserve(int64_t n_tokens);
  const std::vector<int32_t>& pages() const noexcept { return pages_; }
  int64_t capacity() const noexcept { return static_cast<int64_t>(pages_.size()) * kPageTokens; }

  /// The exact page beside each of pages(), −1 where there is none; empty without a pool of them.
  const std::vector<int32_t>& exact() const noexcept { return exact_; }
  /// Before a pass over tokens [begin, end), for which there is room: takes the exact pages that they are written to.
  /// Gives none back, so the same tokens may be computed again. Throws Error{out_of_memory} if the pool runs dry
  /// (exact_pages_for() says what never does), Error{bug} if `begin` would read an exact page that was given back.
  void hold_exact(int64_t begin, int64_t end);
  /// Gives back the exact pages that no token from `begin` on reads.
  void release_exact(int64_t begin);
  /// Of the full pages before `position`, a multiple of kPageTokens, takes exact pages for the first and the last
  /// three: those that a query at `position` reads, and one more, so that one may also go on a page before. For who
  /// fills them. Throws as hold_exact().
  void hold_exact_before(int64_t position);

 private:
  void take_exact(int64_t page);
  PagePool *pool_, *exact_pool_;
  std::vector<int32_t> pages_, exact_;
};

}  // namespace firstlight

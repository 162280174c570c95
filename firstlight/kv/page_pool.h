// SPDX-License-Identifier: Apache-2.0
// Book-keeping of the paged KV cache: which pages are free, who holds the others, and which are kept though nobody
// does. The bytes lie with the back end. A compressed cache has two pools: pages of codes, which every token has, and
// exact pages (bf16) for the few that matter most to a query.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
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

/// A fixed number of pages, handed out one at a time; a page may have several holders. A page that is *kept* is not
/// free when its last holder gives it back: it waits with its content for another one, until no free page is left. Not
/// thread-safe: the engine's thread owns it.
class PagePool {
 public:
  explicit PagePool(int64_t n_pages);
  int64_t n_pages() const noexcept { return n_pages_; }
  /// What try_take() can hand out: pages that nobody holds, kept or not.
  int64_t n_free() const noexcept { return static_cast<int64_t>(free_.size()) + n_idle_; }
  /// A page with one holder. A kept page is taken if there is no other: the one given back longest ago; it is no longer
  /// kept, and on_evict() is told. Null when there is none: not an error, the scheduler waits.
  std::optional<int32_t> try_take();
  /// One more holder of a page that is held or kept.
  void share(int32_t page);
  void give_back(int32_t page);
  int n_holders(int32_t page) const noexcept { return state_[static_cast<size_t>(page)].n_holders; }

  /// Of a page that is held.
  void keep(int32_t page);
  bool is_kept(int32_t page) const noexcept { return state_[static_cast<size_t>(page)].kept; }
  /// Called by try_take() with the kept page that it is about to hand out; must not call the pool.
  void on_evict(std::function<void(int32_t page)> call) { on_evict_ = std::move(call); }

 private:
  struct State {
    int32_t n_holders = 0;
    bool kept = false;
    int32_t before = -1, after = -1;  ///< in the list of idle pages
  };
  State& checked(int32_t page, const char* what);
  void link(int32_t page);
  void unlink(int32_t page);

  int64_t n_pages_, n_idle_ = 0;
  std::vector<int32_t> free_;
  std::vector<State> state_;
  int32_t oldest_ = -1, newest_ = -1;  // idle: kept and held by nobody, in the order of being given back
  std::function<void(int32_t)> on_evict_;
};

/// A sequence's pages in order: token t lies in page pages[t / 64], slot t % 64. Gives its pages back on destruction,
/// the last first, so that of kept pages the end of a text goes before its beginning.
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
  /// Whether the exact pages are held that a query at `position` reads, its own page's where that has tokens before it.
  bool has_exact_before(int64_t position) const noexcept;

  /// Adds a page that is held or kept elsewhere, and the exact page beside it (−1: none), to the end.
  void append_shared(int32_t page, int32_t exact);
  /// Another table over the pages of the first n_tokens and their exact pages: both hold all of them, and who writes
  /// calls try_own() first.
  PageTable fork(int64_t n_tokens) const;
  /// Copies pages: see try_own().
  struct Copies {
    std::function<void(int32_t from, int32_t to)> page, exact;
  };
  /// Before tokens from `begin` on are written: of the pages that they lie in, those that others hold or that are kept
  /// are replaced by pages of this table alone, with the content of the tokens before `begin` (copy on write). False
  /// (and nothing lost) if the pool has too few. Throws Error{out_of_memory} if exact pages run dry, as hold_exact().
  bool try_own(int64_t begin, const Copies& copies);
  /// Gives back all pages behind the first n_tokens (roll-back). False, and unchanged, if the exact pages are gone that
  /// the next token reads: what is to follow must then be computed from the beginning.
  bool try_truncate(int64_t n_tokens);

 private:
  void take_exact(int64_t page);
  int32_t take_exact_page();
  PagePool *pool_, *exact_pool_;
  std::vector<int32_t> pages_, exact_;
};

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// Book-keeping of the paged KV cache: which pages are free, and which belong to a sequence. The bytes lie with the back
// end.
#pragma once
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace firstlight {

/// Tokens in a page.
inline constexpr int kPageTokens = 64;

/// How keys and values are stored.
enum class KvKind { f32, bf16 };
std::string_view to_string(KvKind kind) noexcept;
std::optional<KvKind> kv_kind_from(std::string_view name) noexcept;
/// Bytes of one element as stored.
int kv_element_bytes(KvKind kind) noexcept;

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
  explicit PageTable(PagePool& pool) : pool_(&pool) {}
  ~PageTable();
  PageTable(PageTable&&) noexcept;
  PageTable& operator=(PageTable&&) = delete;
  /// Makes room for n_tokens in all; false (and unchanged) if the pool has too few.
  bool try_reserve(int64_t n_tokens);
  const std::vector<int32_t>& pages() const noexcept { return pages_; }
  int64_t capacity() const noexcept { return static_cast<int64_t>(pages_.size()) * kPageTokens; }

 private:
  PagePool* pool_;
  std::vector<int32_t> pages_;
};

}  // namespace firstlight

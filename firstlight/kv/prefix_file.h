// SPDX-License-Identifier: Apache-2.0
// Keys and values of a sequence's first pages in a file, in the form in which they lie in memory (docs/prefix.md).
#pragma once
#include <cstdint>
#include <memory>
#include <span>

#include "firstlight/io/file.h"
#include "firstlight/kv/page_pool.h"
#include "firstlight/kv/prefix_head.h"

namespace firstlight {

/// Where a page of the sequence lies, or the exact page beside it, which must be held.
std::byte* page_of(const RankPages& rank, const PageTable& table, int64_t page);
std::byte* exact_of(const RankPages& rank, const PageTable& table, int64_t page);
/// Throws Error{bug} unless ranks and table are what `info` describes.
void require_fits(const PrefixInfo& info, std::span<const RankPages> ranks, const PageTable& table);

/// A prefix file, open, its head checked. Its pages come by PrefixRead (kv/prefix_read.h).
class PrefixFile {
 public:
  /// Throws Error{not_found, io} and what parse_prefix_head() throws.
  explicit PrefixFile(const fs::path& path);

  const PrefixHead& head() const noexcept { return head_; }
  const PrefixInfo& info() const noexcept { return head_.info; }
  const std::shared_ptr<const File>& file() const noexcept { return file_; }

 private:
  std::shared_ptr<const File> file_;
  PrefixHead head_;
};

}  // namespace firstlight

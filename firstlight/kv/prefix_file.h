// SPDX-License-Identifier: Apache-2.0
// Keys and values of a sequence's first pages in a file, in the form in which they lie in memory (docs/prefix.md).
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <stop_token>

#include "firstlight/io/file.h"
#include "firstlight/io/reader.h"
#include "firstlight/kv/page_pool.h"
#include "firstlight/kv/prefix_head.h"

namespace firstlight {

/// Writes the first info.n_pages() pages of `table`, and the exact ones beside them, of all ranks [info.tp]; the pages
/// must be full, and the exact pages that info names held. Blocks. path.partial, fsync, rename: afterwards `path` is
/// whole or as it was. Returns the file's size. Throws Error{bad_input} if `path` is a file of another type,
/// Error{io}; Interrupted.
uint64_t write_prefix(const fs::path& path, const PrefixInfo& info, std::span<const RankPages> ranks,
                      const PageTable& table, const std::stop_token& stop = {});

/// A prefix file, open, its head checked.
class PrefixFile {
 public:
  /// Throws Error{not_found, io} and what parse_prefix_head() throws.
  explicit PrefixFile(const fs::path& path);

  const PrefixInfo& info() const noexcept { return head_.info; }
  const std::shared_ptr<const File>& file() const noexcept { return file_; }  ///< for the choice of a reader

  /// Reads all pages into those of `table`, which has room for the prefix and holds its exact pages
  /// (PageTable::hold_exact_before()). Pages of ranks on the CPU are read to their places and hashed by the thread that
  /// read them; those on a GPU go through 64 MiB of host memory. Blocks. Returns the bytes read. Throws Error{damaged}
  /// naming file, range, rank and tokens if a hash is another one: the table's pages then hold nothing of use.
  /// Error{io}; Interrupted.
  uint64_t read(Reader& reader, std::span<const RankPages> ranks, const PageTable& table,
                const std::stop_token& stop = {}) const;

 private:
  struct Piece;
  std::vector<Piece> pieces(std::span<const RankPages> ranks, const PageTable& table) const;
  void read_to_host(Reader& reader, std::span<Piece> pieces, const std::stop_token& stop) const;
  void check_padding() const;

  std::shared_ptr<const File> file_;
  PrefixHead head_;
};

}  // namespace firstlight

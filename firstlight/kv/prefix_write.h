// SPDX-License-Identifier: Apache-2.0
// Saves the keys and values of a sequence's first pages (docs/prefix.md).
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <stop_token>

#include "firstlight/io/output_file.h"
#include "firstlight/kv/page_pool.h"
#include "firstlight/kv/prefix_head.h"

namespace firstlight {

/// Throws Error{bad_input} if `path` is there and no prefix file, Error{not_found} if there is no such folder: what
/// write_prefix() would say, before there is anything to write.
void require_prefix_place(const fs::path& path);

/// A prefix file in the making: path.partial, fsync, rename. `path` is whole or as it was, and path.partial goes with
/// this object (not with a process that ends at once).
class PrefixWriter {
 public:
  /// Reserves the file's room, which takes 0.12 s a GB where files lie in memory: worth doing before there is anything
  /// to write. Throws as require_prefix_place(), Error{io} with the path (a full disk); Error{bug} for an info that no
  /// file can have.
  PrefixWriter(const fs::path& path, PrefixInfo info);
  ~PrefixWriter();
  PrefixWriter(const PrefixWriter&) = delete;
  PrefixWriter& operator=(const PrefixWriter&) = delete;

  /// Writes the first info.n_pages() pages of `table`, and the exact ones beside them, of all ranks [info.tp]; the
  /// pages must be full, the exact pages that info names held, and nobody may write to them meanwhile. Once; blocks;
  /// threads of its own copy, hash and write. Returns the file's size. Throws Error{io} with the path,
  /// Error{out_of_memory, device}; Interrupted.
  uint64_t write(std::span<const RankPages> ranks, const PageTable& table, const std::stop_token& stop = {});

 private:
  const fs::path path_;
  const StepHook no_hook_;
  PrefixHead head_;
  std::optional<OutputFile> out_;
};

/// Both at once.
uint64_t write_prefix(const fs::path& path, const PrefixInfo& info, std::span<const RankPages> ranks,
                      const PageTable& table, const std::stop_token& stop = {});

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// Saves the keys and values of a sequence's first pages (docs/prefix.md).
#pragma once
#include <cstdint>
#include <span>
#include <stop_token>

#include "firstlight/io/file.h"
#include "firstlight/kv/page_pool.h"
#include "firstlight/kv/prefix_head.h"

namespace firstlight {

/// Throws Error{bad_input} if `path` is there and no prefix file, Error{not_found} if there is no such folder: what
/// write_prefix() would say, before there is anything to write.
void require_prefix_place(const fs::path& path);

/// Writes the first info.n_pages() pages of `table`, and the exact ones beside them, of all ranks [info.tp]; the pages
/// must be full, the exact pages that info names held, and nobody may write to them meanwhile. Blocks; several threads
/// of its own copy, hash and write. path.partial, fsync, rename: afterwards `path` is whole or as it was, and there is
/// no path.partial. Returns the file's size. Throws as require_prefix_place(), Error{io} with the path (a full disk,
/// too), Error{out_of_memory, device}; Interrupted.
uint64_t write_prefix(const fs::path& path, const PrefixInfo& info, std::span<const RankPages> ranks,
                      const PageTable& table, const std::stop_token& stop = {});

}  // namespace firstlight

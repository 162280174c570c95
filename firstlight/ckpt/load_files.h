// SPDX-License-Identifier: Apache-2.0
// The small bytes of a load: part headers and leaf hashes, read all at once, each checked against the manifest.
#pragma once
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "firstlight/ckpt/arena.h"
#include "firstlight/ckpt/checked_files.h"
#include "firstlight/ckpt/load.h"
#include "firstlight/ckpt/manifest.h"
#include "firstlight/io/reader.h"

namespace firstlight {

/// One rank on storage: everything about it but its data.
struct RankFiles {
  int rank = 0;
  const ManifestRank* manifest = nullptr;
  std::vector<std::shared_ptr<const File>> parts;
  std::shared_ptr<const File> leaves_file;
  std::vector<uint64_t> leaves;  ///< over all parts; empty if nothing is to be verified
  ArenaLayout layout;

  /// XXH3-64 that leaf `leaf` of part `part` must have.
  uint64_t expected_leaf(size_t part, uint64_t leaf) const { return leaves[manifest->parts[part].first_leaf + leaf]; }
};

/// The first bytes of a file. `into` may still be written to by a reader that gave a read up: it outlives the reader.
struct SmallRead {
  std::shared_ptr<const File> file;
  uint64_t size = 0;
  std::unique_ptr<char[]> into = {};  ///< not zeroed: the thread that reads also touches (a part's header takes 2 MiB)
  std::function<void(std::string_view)> use = {};  ///< checks and keeps the bytes, on the thread that has read them
  int64_t result = 0;
  std::exception_ptr failure = {};  ///< what `use` threw
};

/// Turns a completion that is no success into the error that says so. `what` names the bytes: "'x' bytes [0, 4096)".
/// Error{damaged} for a file that ended early, Error{io} for the rest.
std::exception_ptr read_failure(int64_t result, const std::string& what, uint64_t file_size, double deadline_s);

/// Opens the files of every rank that is to be loaded and reads their headers and leaf hashes through `reader`. `reads`
/// keeps the memory. Throws Error{not_found, damaged, bad_input, io}; Interrupted if `options.stop` was asked.
std::vector<RankFiles> open_ranks(const fs::path& out, const Manifest& manifest, const ModelConfig& config,
                                  const LoadOptions& options, Reader& reader, std::vector<SmallRead>& reads);

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// The small bytes of a load: part headers and leaf hashes, read all at once, each checked against the manifest.
#pragma once
#include <exception>
#include <functional>
#include <latch>
#include <memory>
#include <optional>
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
  std::vector<uint64_t> leaves;        ///< over all parts; empty if nothing is to be verified
  std::vector<uint64_t> region_begin;  ///< of each part, in the arena
  uint64_t tails_begin = 0;            ///< in the arena, behind all weights: where tails are read to
  ArenaLayout layout;                  ///< once the headers have been read

  /// XXH3-64 that leaf `leaf` of part `part` must have.
  uint64_t expected_leaf(size_t part, uint64_t leaf) const { return leaves[manifest->parts[part].first_leaf + leaf]; }
};

/// Turns a completion that is no success into the error that says so. `what` names the bytes: "'x' bytes [0, 4096)".
/// Error{damaged} for a file that ended early, Error{io} for the rest.
std::exception_ptr read_failure(int64_t result, const std::string& what, uint64_t file_size, double deadline_s);

/// Opens the files of every rank that is to be loaded. Throws Error{not_found, damaged, io}.
std::vector<RankFiles> open_ranks(const fs::path& out, const Manifest& manifest, const ModelConfig& config,
                                  const LoadOptions& options);

/// Part headers and leaf hashes of ranks, on their way. Outlives the reader, which may still write to its memory when
/// it has given a read up.
class HeaderReads {
 public:
  HeaderReads() = default;
  HeaderReads(const HeaderReads&) = delete;
  HeaderReads& operator=(const HeaderReads&) = delete;

  /// Once. `ranks` stay where they are until finish().
  void begin(Reader& reader, const Manifest& manifest, std::vector<RankFiles>& ranks);
  /// Blocks until all are there and checked, whatever else the reader has to do, then lays the arenas out. Throws
  /// Error{damaged, bad_input, io}; Interrupted if `options.stop` was asked.
  void finish(const Manifest& manifest, const ModelConfig& config, const LoadOptions& options);

 private:
  /// The first bytes of a file.
  struct Small {
    std::shared_ptr<const File> file;
    uint64_t size = 0;
    std::unique_ptr<char[]> into = {};  // not zeroed: the thread that reads also touches (a header takes 2 MiB)
    std::function<void(std::string_view)> use = {};  // checks and keeps the bytes, on the thread that has read them
    int64_t result = 0;
    std::exception_ptr failure = {};  // what `use` threw
  };
  void done(Small& read, int64_t result) noexcept;

  std::vector<RankFiles>* ranks_ = nullptr;
  std::vector<std::vector<SafetensorsHeader>> headers_;  // of each rank's parts
  std::vector<Small> reads_;
  std::optional<std::latch> left_;
};

}  // namespace firstlight

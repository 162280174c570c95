// SPDX-License-Identifier: Apache-2.0
// How fast each reader reads a file system that is not in the page cache: measured shortly, and remembered in a small
// text file that may be deleted at any time.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "firstlight/io/file.h"

namespace firstlight {

/// Bytes a second; 0: nothing came in time.
struct ReaderSpeeds {
  double pread = 0;
  double io_uring = 0;
  /// Of storage behind a network (is_network()): the seconds that a lone read of 2 MiB takes, and what comes with 32 of
  /// them under way; else 0.
  double latency_s = 0;
  double deep = 0;
};

/// Reads four times 16 MiB (io_uring, pread, pread, io_uring), each at most 0.1 s, from places of `files` that are not
/// in the page cache; nothing if there are not so many. What pread reads stays in the page cache. Behind a network also
/// a read alone and 64 MiB at once, where there are so many in a row. Throws Interrupted.
std::optional<ReaderSpeeds> measure_readers(std::span<const std::shared_ptr<const File>> files, int n_threads,
                                            const std::stop_token& stop);

struct RememberedSpeeds {
  ReaderSpeeds speeds;
  int64_t unix_s = 0;  ///< when they were measured
};

/// One file, a line a file system. A file that is not as remember() writes it is as good as none, and `why_not` says
/// so. Nothing throws: a memory that does not work costs a measurement.
class SpeedMemory {
 public:
  /// An empty path remembers nothing.
  explicit SpeedMemory(fs::path path) : path_(std::move(path)) {}
  /// $XDG_CACHE_HOME/firstlight/readers or ~/.cache/firstlight/readers; empty without a home.
  static fs::path default_path();

  const fs::path& path() const { return path_; }
  /// Of the file system `key`, not older than 30 days.
  std::optional<RememberedSpeeds> recall(const std::string& key, int64_t now_s, std::string& why_not) const;
  /// Beside what else is remembered. Returns "" or why it could not be written.
  std::string remember(const std::string& key, RememberedSpeeds speeds) const;

 private:
  struct Entry {
    std::string key;
    RememberedSpeeds speeds;
  };
  std::vector<Entry> read(std::string& why_not) const;

  fs::path path_;
};

}  // namespace firstlight

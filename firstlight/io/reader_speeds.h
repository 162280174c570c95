// SPDX-License-Identifier: Apache-2.0
// How fast each reader reads a file system that is not in the page cache: measured shortly, and remembered in a small
// text file that may be deleted at any time.
#pragma once
#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "firstlight/device/device.h"
#include "firstlight/io/device_reader.h"
#include "firstlight/io/file.h"

namespace firstlight {

constexpr double kNotMeasured = -1;

/// Bytes a second; 0: nothing came in time, or it is not to be had; kNotMeasured: it was no candidate.
struct ReaderSpeeds {
  double pread = 0;                    ///< through the page cache
  double io_uring = kNotMeasured;      ///< past it
  double pread_direct = kNotMeasured;  ///< likewise
  /// Of storage behind a network (is_network()): the seconds that a lone read of 2 MiB takes, and what comes with 32 of
  /// them under way by the faster way past the page cache; else 0.
  double latency_s = 0;
  double deep = 0;
  double cufile = kNotMeasured;

  bool has_past_cache() const { return io_uring >= 0 || pread_direct >= 0; }
  bool uring_is_faster() const { return io_uring >= pread_direct; }
  double past_cache() const { return std::max({io_uring, pread_direct, has_past_cache() ? deep : kNotMeasured}); }
};

/// How bytes can get to a device without passing host memory, if they can.
struct DirectReads {
  Device device;
  /// A reader that refuses every other way (Cufile::open without compatibility). Throws Error{unsupported, device}.
  std::function<std::unique_ptr<DeviceReader>()> make;
};

/// Who is measured beside pread through the page cache.
struct ReaderCandidates {
  int n_threads = 1;
  bool io_uring = false, pread_direct = false;
  const DirectReads* direct = nullptr;  ///< null: no cufile
};

/// Reads 16 MiB twice by each candidate (io_uring, pread_direct, pread, cufile, and back), each at most 0.1 s,
/// from places of `files` that are not in the page cache; nothing if there are not so many. What pread reads stays in
/// the page cache; cufile reads into memory of its device, which is waited for. Why cufile gave nothing is added to
/// `note`. Behind a network the faster way past the page cache also reads a piece alone and 64 MiB at once, where there
/// are so many in a row.
/// Throws Interrupted.
std::optional<ReaderSpeeds> measure_readers(std::span<const std::shared_ptr<const File>> files,
                                            const ReaderCandidates& candidates, const std::stop_token& stop,
                                            std::string& note);

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

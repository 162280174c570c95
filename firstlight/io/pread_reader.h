// SPDX-License-Identifier: Apache-2.0
// The Reader that needs nothing but pread(2): a few threads and one queue; through the page cache, or past it. The
// system call can be replaced, so that memory and faults go through the same queue as files.
#pragma once
#include <sys/types.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <string>

#include "firstlight/io/reader.h"

namespace firstlight {

/// The one system call of PreadReader, as pread(2): bytes read, 0 at the end of the file, or −1 with errno set. Called
/// from several threads at once.
struct RawRead {
  virtual ~RawRead() = default;
  virtual ssize_t pread(int fd, void* into, size_t size, off_t offset);  ///< the kernel's
};

/// First come, first served: requests start in the order of submission. The constructor starts one thread, and that the
/// others.
class PreadReader final : public Reader {
 public:
  static constexpr const char* kDirectName = "pread (O_DIRECT)";  ///< for name(), of one that reads past the page cache
  static constexpr uint64_t kNeverDirect = std::numeric_limits<uint64_t>::max();
  /// At least one thread, and fewer than asked for where the system gives no more. `raw` null: the kernel's pread.
  /// Requests of `direct_from` bytes and more go past the page cache (O_DIRECT) wherever offset and address allow it,
  /// and why() ends with how many bytes went which way.
  explicit PreadReader(int n_threads, std::shared_ptr<RawRead> raw = nullptr, std::string name = "pread",
                       std::string why = "the default", uint64_t direct_from = kNeverDirect);
  ~PreadReader() override;
  PreadReader(const PreadReader&) = delete;
  PreadReader& operator=(const PreadReader&) = delete;

  void submit(std::span<const ReadRequest> requests, const ReadCallback& done) override;
  void set_deadline(Clock::time_point deadline) override;
  void cancel() override;
  void wait() override;
  std::string_view name() const override;
  std::string why() const override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace firstlight

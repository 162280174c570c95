// SPDX-License-Identifier: Apache-2.0
// Storage → memory as a queue of requests. Back ends: pread (threads), io_uring (past the page cache), and for tests
// memory and injected faults; cuFile follows behind the same class.
#pragma once
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "firstlight/io/file.h"

namespace firstlight {

/// One byte range of one file to its final address.
struct ReadRequest {
  uint64_t id = 0;  ///< the caller's; comes back in the completion
  std::shared_ptr<const File> file;
  uint64_t offset = 0;
  uint64_t size = 0;
  std::byte* into = nullptr;  ///< size bytes, owned by the caller until the completion
};

/// Exactly one for each submitted request, in any order.
struct ReadCompletion {
  uint64_t id = 0;
  int64_t result =
      0;  ///< size of the request, or −errno; −ENODATA: the file ended early; −ETIMEDOUT: deadline; −ECANCELED
};

/// Called on a reader's thread as soon as a request is done (its bytes are still in that core's cache: the place to
/// hash them). Must not throw, may call submit().
using ReadCallback = std::function<void(const ReadCompletion&)>;

/// Short reads, EINTR and EAGAIN are continued inside. Thread-safe.
class Reader {
 public:
  using Clock = std::chrono::steady_clock;
  virtual ~Reader() = default;  ///< cancels what is queued and waits for what is running

  /// Copies the requests; never blocks on I/O.
  virtual void submit(std::span<const ReadRequest> requests, const ReadCallback& done) = 0;
  /// Requests not done by then complete with −ETIMEDOUT (one stuck inside the kernel is abandoned: its memory must
  /// outlive the reader's destructor, which waits).
  virtual void set_deadline(Clock::time_point deadline) = 0;
  /// Queued requests complete with −ECANCELED.
  virtual void cancel() = 0;
  /// Blocks until every submitted request has completed (callbacks returned), which the deadline bounds. Not from a
  /// callback.
  virtual void wait() = 0;

  /// Many requests to come end in these slots, which outlive the reader: it may pin and map them once instead of at
  /// every read.
  virtual void use_memory(std::span<const std::span<std::byte>> /*slots*/) {}

  virtual std::string_view name() const = 0;  ///< "pread", "io_uring", …
  virtual std::string why() const = 0;        ///< why this one was chosen and what it did, one line
};

}  // namespace firstlight

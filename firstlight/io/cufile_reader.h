// SPDX-License-Identifier: Apache-2.0
// The Reader whose bytes go from storage to device memory by libcufile (GPUDirect Storage).
#pragma once
#include <functional>
#include <memory>
#include <string>

#include "firstlight/io/cufile.h"
#include "firstlight/io/reader.h"

namespace firstlight {

struct CufileOptions {
  /// A request is one call on one thread, as every fast user of the library does it (batches and streams serialise).
  int n_threads = 8;
  /// Opens the library (Cufile::open), called at once on a thread of the reader; requests wait for it.
  std::function<std::shared_ptr<Cufile>()> open;
  /// Called once by each thread before its first read: makes the device the thread's.
  std::function<void()> enter_thread;
  GpuUuid gpu{};  ///< whose counters why() gives
};

/// `into` is an address in device memory. Everything as PreadReader has it: the queue, deadline, cancel, short reads.
/// −EREMOTEIO: the library failed, failure() says how.
class CufileReader final : public Reader {
 public:
  explicit CufileReader(CufileOptions options);
  ~CufileReader() override;
  CufileReader(const CufileReader&) = delete;
  CufileReader& operator=(const CufileReader&) = delete;

  void submit(std::span<const ReadRequest> requests, const ReadCallback& done) override;
  void set_deadline(Clock::time_point deadline) override;
  void cancel() override;
  void wait() override;
  /// Registers device memory with the library where reads are direct; blocks until the library is open. What cannot be
  /// registered is read to all the same, and why() says so.
  void use_memory(std::span<const std::span<std::byte>> slots) override;
  std::string_view name() const override;
  std::string why() const override;

  /// Blocks until the library is open; throws why it is not.
  void wait_until_ready();
  /// What failed first inside the library, or null.
  std::exception_ptr failure() const;

 private:
  class Read;
  std::shared_ptr<Read> read_;
  std::unique_ptr<Reader> queue_;
};

}  // namespace firstlight

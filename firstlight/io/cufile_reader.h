// SPDX-License-Identifier: Apache-2.0
// The Reader whose bytes go from storage to device memory by libcufile (GPUDirect Storage).
#pragma once
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "firstlight/io/cufile.h"
#include "firstlight/io/device_reader.h"

namespace firstlight {

struct CufileOptions {
  /// A request is one call on one thread, as every fast user of the library does it (batches and streams serialise).
  int n_threads = 8;
  /// Makes the device stand and opens the library (Cufile::open); called at once on a thread of the reader, and
  /// requests wait for it.
  std::function<std::shared_ptr<Cufile>()> open;
  /// Called once by each thread before its first read: makes the device the thread's.
  std::function<void()> enter_thread;
  std::string why;  ///< of the choice: why() begins with it
  /// Whose counters why() gives; asked then, not at the start (0.1 s for its properties).
  std::function<GpuUuid()> gpu;
};

/// As DeviceReader says, and everything as PreadReader has it: the queue, deadline, cancel, short reads.
class CufileReader final : public DeviceReader {
 public:
  /// `host`: for requests that end in host memory.
  explicit CufileReader(CufileOptions options, std::unique_ptr<Reader> host = nullptr);
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

  void hold() override;
  void release(Address address) override;
  Reader& host_reader() override { return *host_; }
  void wait_until_ready() override;  ///< until the library is open, too
  std::exception_ptr failure() const override;

 private:
  class Read;
  struct Held {
    std::vector<ReadRequest> requests;
    ReadCallback done;
  };
  std::vector<Held> take_held(bool end_hold);
  void submit_placed(std::vector<ReadRequest> requests, const ReadCallback& done);

  std::shared_ptr<Read> read_;
  std::unique_ptr<Reader> queue_, host_;
  std::mutex mutex_;
  bool holding_ = false;
  std::vector<Held> held_;
  Address address_;  // set before holding ends
};

}  // namespace firstlight

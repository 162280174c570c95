// SPDX-License-Identifier: Apache-2.0
// A Ring without io_uring: its reads are a RawRead's, so that faults and memory go through UringReader as they go
// through PreadReader. For tests.
#pragma once
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "firstlight/io/fault_read.h"
#include "firstlight/io/pread_reader.h"
#include "firstlight/io/ring.h"

namespace firstlight {

/// Reads one after another, on a thread of its own.
class RawRing final : public Ring {
 public:
  explicit RawRing(std::shared_ptr<RawRead> raw);
  ~RawRing() override;
  void read(const RingRead& read) override;
  void cancel(uint64_t id) override;  ///< of a read that waits for its turn
  std::span<const RingDone> wait(Clock::time_point until) override;
  void wake() override;
  std::string use_memory(std::span<const std::span<std::byte>> slots) override;
  void forget_files() override {}

 private:
  void run();

  std::shared_ptr<RawRead> raw_;
  std::mutex mutex_;
  std::condition_variable work_, changed_;
  std::deque<RingRead> queue_;
  std::vector<RingDone> done_, given_;
  bool woken_ = false, stopping_ = false;
  std::thread thread_;
};

/// An io_uring reader named "faulty", one request at a time on each thread: as make_faulty_reader(), the other way.
std::unique_ptr<Reader> make_faulty_uring_reader(std::shared_ptr<FaultyRead> faulty, int n_threads);

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
#include "firstlight/io/raw_ring.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "firstlight/io/uring_reader.h"

namespace firstlight {

RawRing::RawRing(std::shared_ptr<RawRead> raw) : raw_(std::move(raw)), thread_([this] { run(); }) {}

RawRing::~RawRing() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  work_.notify_all();
  thread_.join();
}

void RawRing::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    work_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
    if (queue_.empty()) return;
    const RingRead read = queue_.front();
    queue_.pop_front();
    lock.unlock();
    const ssize_t got = raw_->pread(read.fd, read.into, read.size, static_cast<off_t>(read.offset));
    const int64_t result = got < 0 ? -errno : got;
    lock.lock();
    done_.push_back({read.id, result});
    changed_.notify_all();
  }
}

void RawRing::read(const RingRead& read) {
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(read);
  }
  work_.notify_all();
}

void RawRing::cancel(uint64_t id) {
  const std::lock_guard lock(mutex_);
  const auto found = std::find_if(queue_.begin(), queue_.end(), [id](const RingRead& read) { return read.id == id; });
  if (found == queue_.end()) return;
  queue_.erase(found);
  done_.push_back({id, -ECANCELED});
}

std::span<const RingDone> RawRing::wait(Clock::time_point until) {
  std::unique_lock lock(mutex_);
  const auto is_over = [&] { return woken_ || !done_.empty(); };
  if (until == Clock::time_point::max()) {
    changed_.wait(lock, is_over);
  } else {
    changed_.wait_until(lock, until, is_over);
  }
  woken_ = false;
  given_ = std::exchange(done_, {});
  return given_;
}

void RawRing::wake() {
  {
    const std::lock_guard lock(mutex_);
    woken_ = true;
  }
  changed_.notify_all();
}

std::string RawRing::use_memory(std::span<const std::span<std::byte>>) { return "there is no kernel behind it"; }

std::unique_ptr<Reader> make_faulty_uring_reader(std::shared_ptr<FaultyRead> faulty, int n_threads) {
  UringOptions options;
  options.n_threads = n_threads;
  options.depth = 1;
  options.direct_from = 1;
  options.name = "faulty";
  options.why = "faults are injected";
  options.make_ring = [faulty](unsigned) { return std::make_unique<RawRing>(faulty); };
  return make_uring_reader(options);
}

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
#include "firstlight/comm/meeting.h"

#include <algorithm>
#include <utility>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"

namespace firstlight {

Meeting::Meeting(int n, int spin) : spin_(spin) {
  if (n < 1) throw Error(ErrorKind::bug, str("a group of ", n, " ranks"));
  votes_.resize(static_cast<size_t>(n));
}

void Meeting::barrier() {
  std::unique_lock lock(mutex_);
  if (failure_) std::rethrow_exception(failure_);
  const uint64_t mine = round_.load(std::memory_order_relaxed);
  if (++arrived_ == size()) {
    arrived_ = 0;
    round_.store(mine + 1, std::memory_order_release);
    lock.unlock();
    changed_.notify_all();
    return;
  }
  if (spin_ > 0) {
    lock.unlock();
    for (int i = 0; i < spin_ && !failed_.load(std::memory_order_relaxed); ++i) {
      if (round_.load(std::memory_order_acquire) != mine) return;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    lock.lock();
  }
  changed_.wait(lock, [&] { return round_.load(std::memory_order_relaxed) != mine || failure_ != nullptr; });
  if (round_.load(std::memory_order_relaxed) == mine) std::rethrow_exception(failure_);
}

int Meeting::least(int rank, int mine) {
  votes_[static_cast<size_t>(rank)] = mine;
  barrier();
  const int least = *std::min_element(votes_.begin(), votes_.end());
  barrier();  // all have read: the next vote may be written
  return least;
}

void Meeting::fail(std::exception_ptr cause) {
  {
    const std::lock_guard lock(mutex_);
    if (!failure_) failure_ = std::move(cause);
    failed_.store(true, std::memory_order_relaxed);
  }
  changed_.notify_all();
}

void Meeting::check() const {
  if (!failed_.load(std::memory_order_relaxed)) return;
  const std::lock_guard lock(mutex_);
  std::rethrow_exception(failure_);
}

void Meeting::reset() {
  const std::lock_guard lock(mutex_);
  failure_ = nullptr;
  failed_.store(false, std::memory_order_relaxed);
  arrived_ = 0;
}

}  // namespace firstlight

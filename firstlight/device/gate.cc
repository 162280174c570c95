// SPDX-License-Identifier: Apache-2.0
#include "firstlight/device/gate.h"

#include <utility>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"

namespace firstlight {

Gates::Gates(int n) : open_(static_cast<size_t>(n < 0 ? 0 : n)) {}

int Gates::size() const noexcept { return static_cast<int>(open_.size()); }

size_t Gates::checked(int i) const {
  if (i < 0 || i >= size()) throw Error(ErrorKind::bug, str("gate ", i, " of ", size()));
  return static_cast<size_t>(i);
}

void Gates::open(int i) {
  std::atomic<bool>& gate = open_[checked(i)];
  {
    const std::lock_guard lock(mutex_);  // or a waiter could test, miss this, and sleep through the notification
    gate.store(true, std::memory_order_release);
  }
  changed_.notify_all();
}

void Gates::fail(std::exception_ptr cause) {
  {
    const std::lock_guard lock(mutex_);
    if (!failure_) failure_ = std::move(cause);
  }
  changed_.notify_all();
}

void Gates::wait(int i) {
  const std::atomic<bool>& gate = open_[checked(i)];
  if (gate.load(std::memory_order_acquire)) return;
  std::unique_lock lock(mutex_);
  const auto begin = std::chrono::steady_clock::now();
  changed_.wait(lock, [&] { return gate.load(std::memory_order_acquire) || failure_ != nullptr; });
  waited_ += std::chrono::steady_clock::now() - begin;
  if (!gate.load(std::memory_order_acquire)) std::rethrow_exception(failure_);
}

double Gates::waited_seconds() const {
  const std::lock_guard lock(mutex_);
  return std::chrono::duration<double>(waited_).count();
}

bool Gates::is_open(int i) const { return open_[checked(i)].load(std::memory_order_acquire); }

}  // namespace firstlight

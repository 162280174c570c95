// SPDX-License-Identifier: Apache-2.0
// Layer-ready events: the loader opens numbered gates, the forward pass waits for them.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <vector>

namespace firstlight {

/// n one-way gates with one shared failure. Thread-safe. wait() after open() costs one atomic load, no lock.
class Gates {
 public:
  explicit Gates(int n);
  int size() const noexcept;
  /// Gate i is open from now on; what the opener wrote before is visible to waiters.
  void open(int i);
  /// All waiters, now and later, get this exception from gates that are not open. The first failure stays.
  void fail(std::exception_ptr cause);
  /// Blocks until gate i is open; rethrows the failure. A gate that opened before the failure stays open.
  void wait(int i);
  bool is_open(int i) const;
  /// Seconds that wait() has blocked so far, summed over callers: computing that stood still for want of bytes.
  double waited_seconds() const;

 private:
  size_t checked(int i) const;  // throws Error{bug} past the end

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::atomic<bool>> open_;
  std::exception_ptr failure_;
  std::chrono::steady_clock::duration waited_{};
};

}  // namespace firstlight

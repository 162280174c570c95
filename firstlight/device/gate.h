// SPDX-License-Identifier: Apache-2.0
// Layer-ready events: the loader opens numbered gates, the forward pass waits for them.
#pragma once
#include <condition_variable>
#include <exception>
#include <mutex>
#include <vector>

namespace firstlight {

/// n one-way gates with one shared failure. Thread-safe. wait() after open() costs one relaxed check in the common case.
class Gates {
 public:
  explicit Gates(int n);
  int size() const noexcept;
  /// Gate i is open from now on; what the opener wrote before is visible to waiters.
  void open(int i);
  /// All waiters, now and later, get this exception from gates that are not open. The first failure stays.
  void fail(std::exception_ptr cause);
  /// Blocks until gate i is open; rethrows the failure.
  void wait(int i);
  bool is_open(int i) const;

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<char> open_;
  std::exception_ptr failure_;
};

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// Where the threads of the ranks meet on the host, and where the first failure ends all of them.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <vector>

namespace firstlight {

/// Of n threads. After fail() every call throws its cause; the first stays.
class Meeting {
 public:
  /// `spin`: polls of a waiting thread before it sleeps in the kernel; 0 where ranks may outnumber cores.
  Meeting(int n, int spin);
  int size() const noexcept { return static_cast<int>(votes_.size()); }
  /// Blocks until every rank has come. A round that is complete returns even if a rank fails right after it.
  void barrier();
  /// The same; returns the least of the ranks' numbers.
  int least(int rank, int mine);
  void fail(std::exception_ptr cause);
  /// Throws the cause if a rank has failed.
  void check() const;
  /// Forgets the failure. No thread is in a call.
  void reset();

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::exception_ptr failure_;
  std::atomic<bool> failed_{false};
  const int spin_;
  int arrived_ = 0;
  std::atomic<uint64_t> round_{0};
  std::vector<int> votes_;  ///< written by their ranks before the first barrier of least()
};

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// A fixed set of threads that run one function together, with a barrier: fork-join for the CPU back end.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>

namespace firstlight {

/// n threads in all, the calling one included. One run() at a time, always from the same thread.
class ThreadPool {
 public:
  /// `spin`: how many polls a waiting thread makes before it sleeps in the kernel. 0 where threads outnumber cores
  /// (tensor-parallel ranks on few cores must not spin).
  explicit ThreadPool(int n_threads, int spin = 4000);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int n_threads() const noexcept;
  /// How many polls from now on; from the thread that calls run().
  void set_spin(int polls) noexcept;
  /// Calls fn(thread) for thread = 0 … n_threads()-1, thread 0 on the caller; returns when all have returned. The first
  /// exception thrown by any of them is rethrown here.
  void run(const std::function<void(int thread)>& fn);
  /// Splits [0, n) into contiguous pieces whose borders are multiples of `grain`, one a thread: fn(begin, end, thread).
  void for_range(int64_t n, int64_t grain, const std::function<void(int64_t begin, int64_t end, int thread)>& fn);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Cores this process may use (affinity mask and cgroup quota), at least 1.
int usable_cores();

}  // namespace firstlight

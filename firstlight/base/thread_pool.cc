// SPDX-License-Identifier: Apache-2.0
#include "firstlight/base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <exception>
#include <fstream>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "firstlight/base/start_thread.h"

namespace firstlight {

namespace {

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

/// Polls `spin` times, then sleeps until `value` differs from `old`.
uint32_t wait_change(const std::atomic<uint32_t>& value, uint32_t old, const std::atomic<int>& spin) {
  for (int i = 0; i < spin.load(std::memory_order_relaxed); ++i) {
    const uint32_t now = value.load(std::memory_order_acquire);
    if (now != old) return now;
    pause();
  }
  uint32_t now = value.load(std::memory_order_acquire);
  while (now == old) {
    value.wait(old, std::memory_order_acquire);
    now = value.load(std::memory_order_acquire);
  }
  return now;
}

}  // namespace

struct ThreadPool::Impl {
  int n = 1;
  std::atomic<int> spin{0};
  std::vector<std::thread> threads;
  const std::function<void(int)>* fn = nullptr;
  std::atomic<uint32_t> round{0};    // raised by run(): work is there
  std::atomic<uint32_t> running{0};  // workers not yet done with this round
  std::atomic<bool> stopping{false};
  std::mutex failure_mutex;
  std::exception_ptr failure;

  void call(int thread) {
    try {
      (*fn)(thread);
    } catch (...) {
      const std::lock_guard lock(failure_mutex);
      if (!failure) failure = std::current_exception();
    }
  }

  void work(int thread) {
    uint32_t seen = 0;
    for (;;) {
      seen = wait_change(round, seen, spin);
      if (stopping.load(std::memory_order_acquire)) return;
      call(thread);
      if (running.fetch_sub(1, std::memory_order_acq_rel) == 1) running.notify_one();
    }
  }

  void stop() {
    stopping.store(true, std::memory_order_release);
    round.fetch_add(1, std::memory_order_acq_rel);
    round.notify_all();
    for (std::thread& thread : threads) thread.join();
  }
};

ThreadPool::ThreadPool(int n_threads, int spin) : impl_(std::make_unique<Impl>()) {
  impl_->n = std::max(1, n_threads);
  impl_->spin = spin;
  try {
    for (int i = 1; i < impl_->n; ++i) {
      impl_->threads.push_back(start_thread("computing", [impl = impl_.get(), i] { impl->work(i); }));
    }
  } catch (...) {
    impl_->stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { impl_->stop(); }

int ThreadPool::n_threads() const noexcept { return impl_->n; }

void ThreadPool::set_spin(int polls) noexcept { impl_->spin.store(polls, std::memory_order_relaxed); }

void ThreadPool::run(const std::function<void(int)>& fn) {
  Impl& p = *impl_;
  p.fn = &fn;
  if (p.n > 1) {
    p.running.store(static_cast<uint32_t>(p.n - 1), std::memory_order_release);
    p.round.fetch_add(1, std::memory_order_acq_rel);
    p.round.notify_all();
  }
  p.call(0);
  if (p.n > 1) {
    uint32_t left = p.running.load(std::memory_order_acquire);
    while (left != 0) left = wait_change(p.running, left, p.spin);
  }
  p.fn = nullptr;
  if (p.failure) std::rethrow_exception(std::exchange(p.failure, nullptr));
}

void ThreadPool::for_range(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t, int)>& fn) {
  const int64_t pieces = (n + grain - 1) / grain;
  const int64_t workers = impl_->n;
  if (pieces <= 1 || workers == 1) {
    if (n > 0) fn(0, n, 0);
    return;
  }
  run([&](int thread) {
    const int64_t begin = pieces * thread / workers * grain;
    const int64_t end = std::min(n, pieces * (thread + 1) / workers * grain);
    if (begin < end) fn(begin, end, thread);
  });
}

int usable_cores() {
  cpu_set_t set;
  int cores = 1;
  if (sched_getaffinity(0, sizeof set, &set) == 0) cores = std::max(1, CPU_COUNT(&set));
  std::ifstream quota_file("/sys/fs/cgroup/cpu.max");
  double quota = 0, period = 0;
  if (quota_file >> quota >> period && period > 0) {  // "max 100000" does not parse: no quota
    cores = std::min(cores, std::max(1, static_cast<int>(quota / period + 0.5)));
  }
  return cores;
}

}  // namespace firstlight

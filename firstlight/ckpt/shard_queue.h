// SPDX-License-Identifier: Apache-2.0
// What the stages of a conversion hand to each other. Queues are unbounded: the buffers that travel in them are not.
#pragma once
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>

namespace firstlight {

/// First in, first out, between threads.
template <class T>
class StageQueue {
 public:
  void push(T value) {
    {
      const std::lock_guard lock(mutex_);
      values_.push_back(std::move(value));
    }
    changed_.notify_one();
  }
  /// Blocks until there is a value. Empty after abort(), and after close() once all values are taken.
  std::optional<T> pop() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return aborted_ || closed_ || !values_.empty(); });
    if (aborted_ || values_.empty()) return std::nullopt;
    T value = std::move(values_.front());
    values_.pop_front();
    return value;
  }
  /// No push() follows.
  void close() { set(closed_); }
  /// Every pop(), now and later, returns empty.
  void abort() { set(aborted_); }

 private:
  void set(bool& flag) {
    {
      const std::lock_guard lock(mutex_);
      flag = true;
    }
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<T> values_;
  bool closed_ = false, aborted_ = false;
};

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// Collectives between threads of one process, over buffers that the group owns: a rank that has failed may unwind and
// free its own memory at any moment without another rank still reading it.
#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <utility>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/comm/comm.h"

namespace firstlight {
namespace {

constexpr size_t kRangeFloats = 16;  // a cache line: ranks write the sum without sharing lines

/// What the ends of one group share.
class Group {
 public:
  explicit Group(int n) : ranks_(static_cast<size_t>(n)) {}
  int size() const { return static_cast<int>(ranks_.size()); }

  void check() {
    const std::lock_guard lock(mutex_);
    if (failure_) std::rethrow_exception(failure_);
  }

  /// Sleeps until every rank has arrived. A round that is complete returns even if a rank fails right after it.
  void barrier() {
    std::unique_lock lock(mutex_);
    if (failure_) std::rethrow_exception(failure_);
    const uint64_t mine = round_;
    if (++arrived_ == size()) {
      arrived_ = 0;
      ++round_;
      lock.unlock();
      changed_.notify_all();
      return;
    }
    changed_.wait(lock, [&] { return round_ != mine || failure_ != nullptr; });
    if (round_ == mine) std::rethrow_exception(failure_);
  }

  void fail(std::exception_ptr cause) {
    {
      const std::lock_guard lock(mutex_);
      if (!failure_) failure_ = std::move(cause);
    }
    changed_.notify_all();
  }

  /// Written by its rank only, `slot` and `slot_size` before a collective's first barrier, `sum` (the rank's range of
  /// it) between the first and the second; read by all after the barrier that follows. Whoever is past a first barrier
  /// knows that all have done with the collective before.
  struct Shared {
    std::vector<float> slot;
    size_t slot_size = 0;
    std::vector<float> sum;
  };
  Shared& of(int rank) { return ranks_[static_cast<size_t>(rank)]; }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::exception_ptr failure_;
  int arrived_ = 0;
  uint64_t round_ = 0;
  std::vector<Shared> ranks_;
};

class ThreadComm final : public Comm {
 public:
  ThreadComm(std::shared_ptr<Group> group, int rank) : group_(std::move(group)), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return group_->size(); }
  void barrier() override { group_->barrier(); }
  void fail(std::exception_ptr cause) override { group_->fail(std::move(cause)); }

  void all_reduce_sum(std::span<float> data) override {
    if (size() == 1) return group_->check();
    publish(data);
    const size_t begin = range_begin(data.size(), rank_), n = range_begin(data.size(), rank_ + 1) - begin;
    std::vector<float>& sum = group_->of(rank_).sum;
    grow(sum, n);
    std::copy_n(group_->of(0).slot.data() + begin, n, sum.data());
    for (int r = 1; r < size(); ++r) {
      const float* slot = group_->of(r).slot.data() + begin;
      for (size_t i = 0; i < n; ++i) sum[i] += slot[i];
    }
    group_->barrier();
    for (int r = 0; r < size(); ++r) {
      const size_t at = range_begin(data.size(), r);
      std::copy_n(group_->of(r).sum.data(), range_begin(data.size(), r + 1) - at, data.data() + at);
    }
  }

  void all_gather(std::span<const float> mine, std::span<float> out) override {
    if (out.size() != mine.size() * static_cast<size_t>(size())) {
      throw Error(ErrorKind::bug, str("all_gather: ", size(), " pieces of ", mine.size(), " floats into ", out.size()));
    }
    publish(mine);
    for (int r = 0; r < size(); ++r) {
      std::copy_n(group_->of(r).slot.data(), mine.size(), out.data() + static_cast<size_t>(r) * mine.size());
    }
    group_->barrier();
  }

 private:
  /// Copies `data` into this rank's slot and waits for the other ranks'; throws on all ranks if their sizes differ.
  void publish(std::span<const float> data) {
    group_->check();  // after a failure others may still read this slot
    Group::Shared& mine = group_->of(rank_);
    grow(mine.slot, data.size());
    std::copy(data.begin(), data.end(), mine.slot.begin());
    mine.slot_size = data.size();
    group_->barrier();
    for (int r = 0; r < size(); ++r) {
      const size_t theirs = group_->of(r).slot_size;
      if (theirs == data.size()) continue;
      group_->fail(std::make_exception_ptr(Error(ErrorKind::bug, str("collective: rank ", r, " has ", theirs,
                                                                     " floats, rank ", rank_, " has ", data.size()))));
      group_->check();
    }
  }

  static void grow(std::vector<float>& values, size_t n) {
    if (values.size() < n) values.resize(n);
  }

  /// Where rank r's part of a sum of n begins: whole cache lines.
  size_t range_begin(size_t n, int r) const {
    const size_t lines = (n + kRangeFloats - 1) / kRangeFloats;
    return std::min(n, lines * static_cast<size_t>(r) / static_cast<size_t>(size()) * kRangeFloats);
  }

  std::shared_ptr<Group> group_;
  int rank_;
};

}  // namespace

std::vector<std::unique_ptr<Comm>> make_thread_comms(int n) {
  if (n < 1) throw Error(ErrorKind::bug, str("a group of ", n, " ranks"));
  const auto group = std::make_shared<Group>(n);
  std::vector<std::unique_ptr<Comm>> comms;
  for (int rank = 0; rank < n; ++rank) comms.push_back(std::make_unique<ThreadComm>(group, rank));
  return comms;
}

}  // namespace firstlight

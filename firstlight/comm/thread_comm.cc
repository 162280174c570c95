// SPDX-License-Identifier: Apache-2.0
// Collectives between threads of one process, over buffers that the group owns: a rank that has failed may unwind and
// free its own memory at any moment without another rank still reading it.
#include <algorithm>
#include <utility>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/comm/comm.h"
#include "firstlight/comm/meeting.h"

namespace firstlight {
namespace {

constexpr size_t kRangeFloats = 16;  // a cache line: ranks write the sum without sharing lines

/// What the ends of one group share.
struct Group {
  explicit Group(int n) : meeting(n, 0), ranks(static_cast<size_t>(n)) {}

  /// Written by its rank only, `slot` and `slot_size` before a collective's first barrier, `sum` (the rank's range of
  /// it) between the first and the second; read by all after the barrier that follows. Whoever is past a first barrier
  /// knows that all have done with the collective before.
  struct Shared {
    std::vector<float> slot;
    size_t slot_size = 0;
    std::vector<float> sum;
  };
  Shared& of(int rank) { return ranks[static_cast<size_t>(rank)]; }

  Meeting meeting;
  std::vector<Shared> ranks;
};

class ThreadComm final : public Comm {
 public:
  ThreadComm(std::shared_ptr<Group> group, int rank) : group_(std::move(group)), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return group_->meeting.size(); }
  std::string_view path() const override { return size() == 1 ? "one rank" : "threads"; }
  int least(int mine) override { return group_->meeting.least(rank_, mine); }
  void check() override { group_->meeting.check(); }
  void fail(std::exception_ptr cause) override { group_->meeting.fail(std::move(cause)); }
  void reset() override { group_->meeting.reset(); }

  void all_reduce_sum(std::span<float> data, const Stream&) override {
    if (size() == 1) return check();
    publish(data);
    const size_t begin = range_begin(data.size(), rank_), n = range_begin(data.size(), rank_ + 1) - begin;
    std::vector<float>& sum = group_->of(rank_).sum;
    grow(sum, n);
    std::copy_n(group_->of(0).slot.data() + begin, n, sum.data());
    for (int r = 1; r < size(); ++r) {
      const float* slot = group_->of(r).slot.data() + begin;
      for (size_t i = 0; i < n; ++i) sum[i] += slot[i];
    }
    group_->meeting.barrier();
    for (int r = 0; r < size(); ++r) {
      const size_t at = range_begin(data.size(), r);
      std::copy_n(group_->of(r).sum.data(), range_begin(data.size(), r + 1) - at, data.data() + at);
    }
  }

 private:
  /// Copies `data` into this rank's slot and waits for the other ranks'; throws on all ranks if their sizes differ.
  void publish(std::span<const float> data) {
    check();  // after a failure others may still read this slot
    Group::Shared& mine = group_->of(rank_);
    grow(mine.slot, data.size());
    std::copy(data.begin(), data.end(), mine.slot.begin());
    mine.slot_size = data.size();
    group_->meeting.barrier();
    for (int r = 0; r < size(); ++r) {
      const size_t theirs = group_->of(r).slot_size;
      if (theirs == data.size()) continue;
      fail(std::make_exception_ptr(Error(ErrorKind::bug, str("collective: rank ", r, " has ", theirs, " floats, rank ",
                                                             rank_, " has ", data.size()))));
      check();
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
  const auto group = std::make_shared<Group>(n);
  std::vector<std::unique_ptr<Comm>> comms;
  for (int rank = 0; rank < n; ++rank) comms.push_back(std::make_unique<ThreadComm>(group, rank));
  return comms;
}

}  // namespace firstlight

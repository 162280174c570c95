// SPDX-License-Identifier: Apache-2.0
#include "firstlight/comm/process_comm.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <thread>
#include <utility>

#include "firstlight/base/start_thread.h"
#include "firstlight/base/str.h"
#include "firstlight/comm/shared_meeting.h"

namespace firstlight {

namespace {

// 512 rows of 576 floats go in one piece, of 8192 in four; a piece costs two barriers.
constexpr size_t kSlotBytes = 4u << 20;
constexpr size_t kSlotFloats = kSlotBytes / sizeof(float);
constexpr size_t kSumRangeFloats = 16;  // a cache line: ranks write the sum without sharing lines
constexpr size_t kSlotsBegin = (sizeof(MeetingWords) + 4095) / 4096 * 4096;

size_t memory_bytes(int size) { return kSlotsBegin + (static_cast<size_t>(size) + 1) * kSlotBytes; }

/// [meeting][a slot for each rank][the sum]: slots are written by their ranks before a barrier and read by all behind
/// it; each rank writes its range of the sum between the first barrier and the second.
class Mapping {
 public:
  Mapping(const Handle& memory, int size) : bytes_(memory_bytes(size)), size_(size) {
    void* at = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, memory.get(), 0);
    if (at == MAP_FAILED) throw_errno(errno, "map", "the memory that ranks share");
    at_ = static_cast<std::byte*>(at);
  }
  ~Mapping() { ::munmap(at_, bytes_); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  MeetingWords& words() const { return *reinterpret_cast<MeetingWords*>(at_); }
  std::byte* slot(int rank) const { return at_ + kSlotsBegin + static_cast<size_t>(rank) * kSlotBytes; }
  float* floats(int rank) const { return reinterpret_cast<float*>(slot(rank)); }
  float* sum() const { return floats(size_); }

 private:
  std::byte* at_ = nullptr;
  size_t bytes_;
  int size_;
};

class SharedComm final : public ProcessComm {
 public:
  SharedComm(const ProcessRank& me, Met met, std::function<void(const std::exception_ptr&)> on_failure)
      : me_(me),
        met_(std::move(met)),
        map_(met_.memory, me.size),
        meeting_(map_.words(), me.rank, me.size),
        wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
        on_failure_(std::move(on_failure)) {
    if (!wake_) throw_errno(errno, "make", "an eventfd");
    watcher_ = start_thread("the other ranks", [this] { watch(); });
  }
  ~SharedComm() override {
    stopping_.store(true);
    wake_watcher();
    watcher_.join();
  }

  int rank() const override { return me_.rank; }
  int size() const override { return me_.size; }
  std::string_view path() const override { return "shared memory between processes"; }
  int least(int mine) override { return meeting_.least(mine); }
  void check() override { meeting_.check(); }
  void reset() override {}
  void fail(std::exception_ptr cause) override {
    meeting_.fail(me_.rank, cause);
    wake_watcher();
  }

  void all_reduce_sum(std::span<float> data, const Stream&) override {
    size_t at = 0;
    do {
      const size_t n = std::min(data.size() - at, kSlotFloats);
      publish(std::as_bytes(data.subspan(at, n)), data.size_bytes());
      add(n);
      meeting_.barrier();
      std::copy_n(map_.sum(), n, data.data() + at);
      at += n;
    } while (at < data.size());
  }

  void exchange(std::span<const std::byte> mine, std::span<std::byte> all) override {
    const size_t expected = mine.size() * static_cast<size_t>(size());
    if (all.size() != expected) throw Error(ErrorKind::bug, str("exchange into ", all.size(), ", expected ", expected));
    collect(mine, all);
  }

  void gather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    const size_t expected = me_.rank == 0 ? mine.size() * static_cast<size_t>(size()) : 0;
    if (all.size() != expected) throw Error(ErrorKind::bug, str("gather into ", all.size(), ", expected ", expected));
    collect(mine, all);
  }

  void broadcast(std::vector<std::byte>& bytes) override {
    uint64_t& size = map_.words().ranks[0].size;
    for (size_t at = 0;;) {
      meeting_.check();
      if (me_.rank == 0) {
        size = bytes.size();
        std::copy_n(bytes.data() + at, std::min(bytes.size() - at, kSlotBytes), map_.slot(0));
      }
      meeting_.barrier();
      if (me_.rank != 0) bytes.resize(size);
      const size_t n = std::min(bytes.size() - at, kSlotBytes);
      if (me_.rank != 0) std::copy_n(map_.slot(0), n, bytes.data() + at);
      meeting_.barrier();
      at += n;
      if (at == bytes.size()) return;
    }
  }

  uint32_t* stop_word() override { return reinterpret_cast<uint32_t*>(&map_.words().stop); }
  std::span<std::byte> stop_page() override { return {reinterpret_cast<std::byte*>(&map_.words()), kSlotsBegin}; }
  void set_spin(int polls) override { meeting_.set_spin(polls); }

  void leave() override {
    meeting_.barrier();
    map_.words().ranks[static_cast<size_t>(me_.rank)].ended.store(1, std::memory_order_release);
  }

 private:
  /// A piece into this rank's slot, and the other ranks' pieces are in theirs. Throws on all ranks if what they bring
  /// in all, `whole_bytes`, differs.
  void publish(std::span<const std::byte> piece, size_t whole_bytes) {
    meeting_.check();  // after a failure others may still read this slot
    auto& ranks = map_.words().ranks;
    std::copy(piece.begin(), piece.end(), map_.slot(me_.rank));
    ranks[static_cast<size_t>(me_.rank)].size = whole_bytes;
    meeting_.barrier();
    for (int r = 0; r < size(); ++r) {
      const uint64_t theirs = ranks[static_cast<size_t>(r)].size;
      if (theirs == whole_bytes) continue;
      fail(std::make_exception_ptr(Error(ErrorKind::bug, str("collective: rank ", r, " has ", theirs, " bytes, rank ",
                                                             me_.rank, " has ", whole_bytes))));
      meeting_.check();
    }
  }

  /// This rank's range of the sum, in rank order.
  void add(size_t n) {
    const size_t begin = range_begin(n, me_.rank), end = range_begin(n, me_.rank + 1);
    float* sum = map_.sum();
    std::copy_n(map_.floats(0) + begin, end - begin, sum + begin);
    for (int r = 1; r < size(); ++r) {
      const float* theirs = map_.floats(r);
      for (size_t i = begin; i < end; ++i) sum[i] += theirs[i];
    }
  }

  /// Everybody's bytes into `all`, where it is not empty.
  void collect(std::span<const std::byte> mine, std::span<std::byte> all) {
    size_t at = 0;
    do {
      const size_t n = std::min(mine.size() - at, kSlotBytes);
      publish(mine.subspan(at, n), mine.size());
      for (int r = 0; r < size() && !all.empty(); ++r) {
        std::copy_n(map_.slot(r), n, all.data() + static_cast<size_t>(r) * mine.size() + at);
      }
      meeting_.barrier();
      at += n;
    } while (at < mine.size());
  }

  /// Where rank r's part of a sum of n begins: whole cache lines.
  size_t range_begin(size_t n, int r) const {
    const size_t lines = (n + kSumRangeFloats - 1) / kSumRangeFloats;
    return std::min(n, lines * static_cast<size_t>(r) / static_cast<size_t>(size()) * kSumRangeFloats);
  }

  void wake_watcher() {
    const uint64_t one = 1;
    static_cast<void>(!::write(wake_.get(), &one, sizeof one));
  }

  /// Sleeps until a connection ends or says that something has failed. Rank 0 hears all and passes it on.
  void watch() {
    bool passed_on = false;
    for (;;) {
      std::vector<pollfd> polled{{wake_.get(), POLLIN, 0}};
      for (const Handle& each : met_.ranks) polled.push_back({each.get(), POLLIN, 0});  // −1 is passed over
      if (::poll(polled.data(), polled.size(), -1) < 0 && errno != EINTR) return;
      uint64_t woken = 0;
      static_cast<void>(!::read(wake_.get(), &woken, sizeof woken));
      if (stopping_.load()) return;  // after the read: it must not swallow the word that comes with this wish
      for (size_t i = 0; i < met_.ranks.size(); ++i) {
        if (polled[i + 1].revents != 0) listen_to(i);
      }
      if (passed_on || !meeting_.failed()) continue;
      passed_on = true;
      const char word = 'f';
      for (const Handle& each : met_.ranks) {
        if (each) ::send(each.get(), &word, 1, MSG_NOSIGNAL | MSG_DONTWAIT);
      }
      if (on_failure_) on_failure_(cause());
    }
  }

  void listen_to(size_t i) {
    char word = 0;
    const ssize_t got = ::recv(met_.ranks[i].get(), &word, 1, MSG_DONTWAIT);
    if (got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR))) return;  // a word: what failed is in the memory
    met_.ranks[i].close();
    const int rank = met_.rank_of(i);
    if (map_.words().ranks[static_cast<size_t>(rank)].ended.load(std::memory_order_acquire) != 0) return;
    meeting_.fail(
        rank, std::make_exception_ptr(Error(ErrorKind::io, "its process is gone without a word (killed, or crashed)")));
  }

  std::exception_ptr cause() const {
    try {
      meeting_.check();
    } catch (...) {
      return std::current_exception();
    }
    return nullptr;
  }

  const ProcessRank me_;
  Met met_;  // the watcher's, from the constructor on
  const Mapping map_;
  SharedMeeting meeting_;
  const Handle wake_;
  const std::function<void(const std::exception_ptr&)> on_failure_;
  std::atomic<bool> stopping_{false};
  std::thread watcher_;
};

}  // namespace

std::unique_ptr<ProcessComm> ProcessComm::join(const ProcessRank& me, const ProcessCommOptions& options) {
  if (me.size > kMostProcesses)
    throw Error(ErrorKind::unsupported, str(me.size, " processes, at most ", kMostProcesses, " ranks are joined"));
  if (me.rank < 0 || me.rank >= me.size) throw Error(ErrorKind::bug, str("rank ", me.rank, " of ", me.size));
  auto joined = std::make_unique<SharedComm>(me, meet(me, memory_bytes(me.size), options.timeout_s, options.stop),
                                             options.on_failure);
  joined->barrier();  // who came early does nothing before all are there
  return joined;
}

}  // namespace firstlight

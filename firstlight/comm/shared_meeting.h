// SPDX-License-Identifier: Apache-2.0
// Where the processes of one host meet, and where the first failure ends all of them: words in memory that all have
// mapped, and futexes on them.
#pragma once
#include <array>
#include <atomic>
#include <cstdint>
#include <exception>
#include <string>
#include <string_view>

#include "firstlight/base/error.h"

namespace firstlight {

inline constexpr int kMostProcesses = 64;

/// The words themselves, at the beginning of the shared memory. Zeros are a new meeting. Nothing in it is a pointer: it
/// lies at another address in each process.
struct MeetingWords {
  static constexpr uint32_t kFailed = 1, kRound = 2;  ///< bit 0 and above of `state`
  std::atomic<uint32_t> state{0};                     ///< one futex for both: no failure is slept over
  std::atomic<uint32_t> arrived{0};
  std::atomic<uint32_t> cause_taken{0};  ///< whose exchange finds 0 writes the cause
  std::atomic<uint32_t> stop{0};         ///< set behind the bit kFailed, for devices that wait; they may set it, too
  int32_t cause_rank = 0;
  int32_t cause_kind = 0;  ///< an ErrorKind; −1: interrupted
  std::array<char, 2048> cause{};
  struct Rank {
    std::atomic<uint32_t> ended{0};  ///< it has left after all had come to the end: its silence is no failure
    int32_t vote = 0;
    uint64_t size = 0;  ///< of what it brings to the collective under way
  };
  std::array<Rank, kMostProcesses> ranks;
};
static_assert(std::atomic<uint32_t>::is_always_lock_free && sizeof(std::atomic<uint32_t>) == sizeof(uint32_t));

/// One process's end. Any of its threads may fail() and check(); one at a time is in barrier().
class SharedMeeting {
 public:
  SharedMeeting(MeetingWords& words, int rank, int size) : words_(words), rank_(rank), size_(size) {}

  /// Blocks, asleep in the kernel after spin polls, until every rank has come. A round that is complete returns even if
  /// a rank fails right after it; else throws the cause as check() does.
  void barrier();
  /// The same; the least of the ranks' numbers.
  int least(int mine);
  /// Polls of a waiting thread before it sleeps; 0 at first, which is right where ranks may outnumber cores.
  void set_spin(int polls) { spin_ = polls; }
  bool failed() const { return (words_.state.load(std::memory_order_acquire) & MeetingWords::kFailed) != 0; }
  /// Throws the cause if a rank has failed: Error of its kind, whose text names the rank, or Interrupted.
  void check() const;
  /// The first cause stays, whichever process had it. On return every process sees the failure, and who sleeps wakes.
  /// `origin` is the rank that it is about.
  void fail(int origin, const std::exception_ptr& cause);

 private:
  void write_cause(int origin, const std::exception_ptr& cause);

  MeetingWords& words_;
  const int rank_, size_;
  int spin_ = 0;
};

}  // namespace firstlight

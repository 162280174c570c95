// SPDX-License-Identifier: Apache-2.0
#include "firstlight/comm/shared_meeting.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstring>
#include <new>

#include "firstlight/base/str.h"

namespace firstlight {

namespace {

constexpr int32_t kInterrupted = -1;

/// Sleeps while the word is `seen`, until it is woken or `limit` (null: none) has passed. Wakes for no reason, too.
void sleep_while(std::atomic<uint32_t>& word, uint32_t seen, const timespec* limit = nullptr) {
  // Not FUTEX_PRIVATE_FLAG: who wakes it is another process.
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT, seen, limit, nullptr, 0);
}

void wake_all(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace

void SharedMeeting::barrier() {
  const uint32_t mine = words_.state.load(std::memory_order_acquire);
  if ((mine & MeetingWords::kFailed) != 0) check();
  if (words_.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(size_)) {
    words_.arrived.store(0, std::memory_order_relaxed);  // nobody arrives at the next round before this one is over
    words_.state.fetch_add(MeetingWords::kRound, std::memory_order_acq_rel);
    wake_all(words_.state);
    return;
  }
  const uint32_t round = mine / MeetingWords::kRound;
  for (int polls = 0;; ++polls) {
    const uint32_t now = words_.state.load(std::memory_order_acquire);
    if (now / MeetingWords::kRound != round) return;
    if ((now & MeetingWords::kFailed) != 0) check();
    if (polls < spin_) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
      continue;
    }
    sleep_while(words_.state, now);
  }
}

int SharedMeeting::least(int mine) {
  words_.ranks[static_cast<size_t>(rank_)].vote = mine;
  barrier();
  int least = mine;
  for (int r = 0; r < size_; ++r) least = std::min(least, words_.ranks[static_cast<size_t>(r)].vote);
  barrier();  // all have read: the next vote may be written
  return least;
}

void SharedMeeting::check() const {
  if (!failed()) return;
  if (words_.cause_kind == kInterrupted) throw Interrupted();
  const std::string_view text(words_.cause.data(), strnlen(words_.cause.data(), words_.cause.size()));
  if (text.empty()) throw Error(ErrorKind::bug, "a rank failed, and ended before it could say why");
  throw Error(static_cast<ErrorKind>(words_.cause_kind), str("rank ", words_.cause_rank, " of ", size_, ": ", text));
}

void SharedMeeting::write_cause(int origin, const std::exception_ptr& cause) {
  words_.cause_rank = origin;
  words_.cause_kind = static_cast<int32_t>(ErrorKind::bug);
  std::string text = "an exception of an unknown type";
  try {
    std::rethrow_exception(cause);
  } catch (const Interrupted&) {
    words_.cause_kind = kInterrupted;
  } catch (const Error& e) {
    words_.cause_kind = static_cast<int32_t>(e.kind());
    text = e.what();
  } catch (const std::bad_alloc&) {
    words_.cause_kind = static_cast<int32_t>(ErrorKind::out_of_memory);
    text = "out of memory";
  } catch (const std::exception& e) {
    text = e.what();
  } catch (...) {
  }
  const size_t n = std::min(text.size(), words_.cause.size() - 1);
  std::copy_n(text.data(), n, words_.cause.data());
}

void SharedMeeting::fail(int origin, const std::exception_ptr& cause) {
  if (words_.cause_taken.exchange(1, std::memory_order_acq_rel) == 0) {
    write_cause(origin, cause);
  } else {
    // Another process is about to say why. If it is killed at that very moment nobody will: then the bit comes alone.
    const timespec some{0, 50'000'000};
    for (int i = 0; i < 10 && !failed(); ++i) sleep_while(words_.state, words_.state.load(), &some);
  }
  words_.state.fetch_or(MeetingWords::kFailed, std::memory_order_acq_rel);
  words_.stop.store(1, std::memory_order_release);
  wake_all(words_.state);
}

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
#include "firstlight/comm/meeting.h"

#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include "firstlight/base/error.h"

namespace firstlight {
namespace {

/// Threads that poll before they sleep, and threads that do not.
class MeetingOf : public testing::TestWithParam<int> {
 protected:
  /// Runs fn(rank) on n threads; what each threw, "" if nothing.
  template <class Fn>
  static std::vector<std::string> on_threads(int n, Fn fn) {
    std::vector<std::string> thrown(static_cast<size_t>(n));
    std::vector<std::thread> threads;
    for (int rank = 0; rank < n; ++rank) {
      threads.emplace_back([&, rank] {
        try {
          fn(rank);
        } catch (const std::exception& e) {
          thrown[static_cast<size_t>(rank)] = e.what();
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    return thrown;
  }
};
INSTANTIATE_TEST_SUITE_P(Spins, MeetingOf, testing::Values(0, 200));

TEST_P(MeetingOf, LetsNobodyThroughBeforeTheLast) {
  constexpr int kRanks = 4;
  Meeting meeting(kRanks, GetParam());
  std::vector<int> arrived(kRanks * 16, 0);  // plain ints, a cache line apart: the barrier alone orders them
  const auto thrown = on_threads(kRanks, [&](int rank) {
    for (int round = 1; round <= 300; ++round) {
      arrived[static_cast<size_t>(rank) * 16] = round;
      meeting.barrier();
      for (size_t r = 0; r < kRanks; ++r) {
        if (arrived[r * 16] != round) throw Error(ErrorKind::bug, "a rank was let through early");
      }
      meeting.barrier();
    }
  });
  for (const std::string& what : thrown) EXPECT_EQ(what, "");
}

TEST_P(MeetingOf, FindsTheLeastNumberForEveryone) {
  Meeting meeting(3, GetParam());
  const auto thrown = on_threads(3, [&](int rank) {
    for (int round = 0; round < 200; ++round) {
      const int mine = (rank * 5 + round * 7) % 11;
      int least = mine;
      for (int r = 0; r < 3; ++r) least = std::min(least, (r * 5 + round * 7) % 11);
      if (meeting.least(rank, mine) != least) throw Error(ErrorKind::bug, "not the least");
    }
  });
  for (const std::string& what : thrown) EXPECT_EQ(what, "");
}

TEST_P(MeetingOf, EndsWithTheFirstCauseAndIsNewAfterAReset) {
  Meeting meeting(3, GetParam());
  for (int round = 0; round < 20; ++round) {
    const auto thrown = on_threads(3, [&](int rank) {
      meeting.barrier();
      if (rank == round % 3) {
        meeting.fail(std::make_exception_ptr(Error(ErrorKind::damaged, "leaf 7")));
        meeting.fail(std::make_exception_ptr(Error(ErrorKind::io, "a later cause")));
        meeting.check();
      }
      meeting.barrier();
    });
    for (const std::string& what : thrown) EXPECT_EQ(what, "leaf 7");
    EXPECT_THROW(meeting.check(), Error);
    meeting.reset();
    EXPECT_NO_THROW(meeting.check());
  }
}

}  // namespace
}  // namespace firstlight

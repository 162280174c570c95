// SPDX-License-Identifier: Apache-2.0
// Ranks here are threads, each with its own connection and its own mapping of the memory, as processes have; where one
// must die, they are processes.
#include "firstlight/comm/process_comm.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstring>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include "firstlight/base/str.h"

namespace firstlight {
namespace {

using testing::HasSubstr;

/// A name that no other test's group has.
std::string fresh_group() {
  static int n = 0;
  return str("test ", ::getpid(), " ", n++);
}

/// Runs fn once a rank, each on its own thread; what a rank threw is its message in the result ("" if nothing).
std::vector<std::string> on_joined_ranks(int n, const std::function<void(ProcessComm&)>& fn) {
  const std::string group = fresh_group();
  std::vector<std::string> thrown(static_cast<size_t>(n));
  std::vector<std::thread> threads;
  for (int r = n - 1; r >= 0; --r) {  // rank 0 comes last
    threads.emplace_back([&, r] {
      try {
        const auto comm = ProcessComm::join({r, n, group}, {});
        fn(*comm);
        comm->leave();
      } catch (const std::exception& e) {
        thrown[static_cast<size_t>(r)] = e.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return thrown;
}

/// Values at which the order of addition shows.
float summand(int rank, size_t i) {
  const uint32_t mixed = static_cast<uint32_t>(rank * 7919 + 1) + static_cast<uint32_t>(i) * 2654435761u;
  return static_cast<float>(static_cast<int32_t>(mixed)) * (rank % 2 == 0 ? 1e-3f : 1e3f);
}

std::byte byte_of(int rank, size_t i) { return static_cast<std::byte>(i * 131 + static_cast<size_t>(rank) * 17 + 5); }

TEST(ProcessComm, TheSumIsThatOfRankOrderToTheBitOnEveryRankAtEverySize) {
  for (const int n : {1, 2, 3, 5}) {
    const auto thrown = on_joined_ranks(n, [&](Comm& comm) {
      for (const size_t size : {size_t{576}, size_t{1}, size_t{0}, size_t{17}, (size_t{1} << 20) + 19, size_t{4999}}) {
        std::vector<float> data(size), expected(size);
        for (size_t i = 0; i < size; ++i) {
          data[i] = summand(comm.rank(), i);
          expected[i] = summand(0, i);
          for (int r = 1; r < n; ++r) expected[i] += summand(r, i);
        }
        comm.all_reduce_sum(data, {});
        if (size != 0 && std::memcmp(data.data(), expected.data(), size * sizeof(float)) != 0)
          throw Error(ErrorKind::bug, str("wrong sum of ", size));
      }
    });
    for (const std::string& what : thrown) EXPECT_EQ(what, "") << n << " ranks";
  }
}

TEST(ProcessComm, BytesGoFromRankZeroToAllAndFromAllToRankZero) {
  for (const int n : {1, 2, 3}) {
    const auto thrown = on_joined_ranks(n, [&](ProcessComm& comm) {
      for (const size_t size : {size_t{1}, size_t{0}, size_t{4096}, (size_t{4} << 20) + 3, size_t{4} << 20}) {
        std::vector<std::byte> bytes(comm.rank() == 0 ? size : 7);
        for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = byte_of(comm.rank(), i);
        comm.broadcast(bytes);
        if (bytes.size() != size) throw Error(ErrorKind::bug, str(bytes.size(), " bytes of ", size));
        for (size_t i = 0; i < size; ++i) {
          if (bytes[i] != byte_of(0, i)) throw Error(ErrorKind::bug, str("broadcast: wrong byte ", i));
          bytes[i] = byte_of(comm.rank(), i);
        }
        std::vector<std::byte> all(comm.rank() == 0 ? size * static_cast<size_t>(n) : 0);
        comm.gather(bytes, all);
        for (size_t i = 0; i < all.size(); ++i) {
          if (all[i] != byte_of(static_cast<int>(i / size), i % size))
            throw Error(ErrorKind::bug, "gather: wrong byte");
        }
        std::vector<float> mine(3, static_cast<float>(comm.rank())), every(3 * static_cast<size_t>(n));
        comm.exchange(std::as_bytes(std::span(mine)), std::as_writable_bytes(std::span(every)));
        for (size_t i = 0; i < every.size(); ++i) {
          if (every[i] != static_cast<float>(i / 3)) throw Error(ErrorKind::bug, "exchange: wrong piece");
        }
      }
      if (comm.least(10 - comm.rank()) != 11 - n) throw Error(ErrorKind::bug, "not the least");
    });
    for (const std::string& what : thrown) EXPECT_EQ(what, "") << n << " ranks";
  }
}

TEST(ProcessComm, TheFirstCauseEndsEveryRanksCallAndNamesItsRank) {
  for (int round = 0; round < 5; ++round) {
    const auto thrown = on_joined_ranks(3, [&](ProcessComm& comm) {
      comm.barrier();
      if (comm.rank() == 1) {
        comm.fail(std::make_exception_ptr(Error(ErrorKind::damaged, "leaf 7")));
        comm.fail(std::make_exception_ptr(Error(ErrorKind::io, "a later cause")));
      }
      try {
        comm.barrier();
      } catch (const Error& e) {
        EXPECT_EQ(e.kind(), ErrorKind::damaged);
        throw;
      }
    });
    for (const std::string& what : thrown) EXPECT_EQ(what, "rank 1 of 3: leaf 7");
  }
}

TEST(ProcessComm, RanksThatBringDifferentSizesAllFail) {
  const auto thrown = on_joined_ranks(2, [&](Comm& comm) {
    std::vector<float> data(comm.rank() == 0 ? 5 : 6);
    comm.all_reduce_sum(data, {});
  });
  for (const std::string& what : thrown) EXPECT_THAT(what, HasSubstr("collective: rank"));
}

TEST(ProcessComm, AFailureIsToldToAllAndToWhoFailsItself) {
  const std::string group = fresh_group();
  std::promise<std::exception_ptr> told, told_itself;
  std::promise<void> joined;
  std::thread other([&] {
    const auto comm = ProcessComm::join(
        {1, 2, group}, {.on_failure = [&](const std::exception_ptr& cause) { told.set_value(cause); }});
    joined.get_future().wait();  // in no call of the comm
  });
  {
    const auto comm = ProcessComm::join(
        {0, 2, group}, {.on_failure = [&](const std::exception_ptr& cause) { told_itself.set_value(cause); }});
    comm->fail(std::make_exception_ptr(Interrupted()));
    EXPECT_THROW(std::rethrow_exception(told.get_future().get()), Interrupted);
    EXPECT_THROW(std::rethrow_exception(told_itself.get_future().get()), Interrupted);
  }
  joined.set_value();
  other.join();
}

/// A rank in a process of its own; its exit code is 0 if fn() returned true.
template <class Fn>
pid_t start_rank(Fn fn) {
  const pid_t child = ::fork();
  if (child != 0) return child;
  bool good = false;
  try {
    good = fn();
  } catch (const std::exception& e) {
    std::fprintf(stderr, "a rank threw: %s\n", e.what());
  }
  ::_exit(good ? 0 : 1);
}

TEST(ProcessComm, AProcessThatIsKilledEndsTheOthersWhichSayWho) {
  for (const int victim : {0, 1, 2}) {
    const std::string group = fresh_group();
    std::vector<pid_t> children;
    for (int r = 0; r < 3; ++r) {
      children.push_back(start_rank([&, r] {
        const auto comm = ProcessComm::join({r, 3, group}, {});
        std::vector<float> data(100, 1);
        comm->all_reduce_sum(data, {});
        if (r == victim) ::raise(SIGKILL);
        try {
          for (;;) comm->barrier();
        } catch (const Error& e) {
          return e.kind() == ErrorKind::io &&
                 std::string(e.what()).starts_with(str("rank ", victim, " of 3: its process"));
        }
      }));
    }
    for (int r = 0; r < 3; ++r) {
      int status = 0;
      ASSERT_EQ(::waitpid(children[static_cast<size_t>(r)], &status, 0), children[static_cast<size_t>(r)]);
      if (r == victim) {
        EXPECT_TRUE(WIFSIGNALED(status));
      } else {
        EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "rank " << r << " when " << victim << " died";
      }
    }
  }
}

TEST(ProcessComm, AllHearWhatEachSays) {
  for (const int polls : {0, 2000}) {
    const auto thrown = on_joined_ranks(3, [&](ProcessComm& comm) {
      comm.set_spin(polls);
      for (int round = 0; round < 50; ++round) {
        const std::array<std::byte, 2> mine{std::byte(comm.rank()), std::byte(round)};
        std::array<std::byte, 6> all{};
        comm.exchange(mine, all);
        for (size_t r = 0; r < 3; ++r) {
          EXPECT_EQ(all[2 * r], std::byte(r));
          EXPECT_EQ(all[2 * r + 1], std::byte(round));
        }
      }
    });
    EXPECT_THAT(thrown, testing::Each(""));
  }
}

TEST(ProcessComm, AFailureIsSeenByDevicesThatWait) {
  const auto thrown = on_joined_ranks(3, [](ProcessComm& comm) {
    const auto stop = [&] { return std::atomic_ref(*comm.stop_word()).load(); };
    EXPECT_EQ(stop(), 0u);
    EXPECT_GE(reinterpret_cast<std::byte*>(comm.stop_word()), comm.stop_page().data());
    EXPECT_LE(reinterpret_cast<std::byte*>(comm.stop_word() + 1), comm.stop_page().data() + comm.stop_page().size());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(comm.stop_page().data()) % 4096, 0u);
    comm.barrier();
    if (comm.rank() == 1) comm.fail(std::make_exception_ptr(Error(ErrorKind::damaged, "leaf 7")));
    while (stop() == 0) std::this_thread::yield();
    comm.check();
  });
  EXPECT_THAT(thrown, testing::Each("rank 1 of 3: leaf 7"));
}

TEST(ProcessComm, ADeviceThatHasWaitedInVainTellsTheOthers) {
  const auto thrown = on_joined_ranks(2, [](ProcessComm& comm) {
    comm.barrier();
    if (comm.rank() == 0) std::atomic_ref(*comm.stop_word()).store(2);
    comm.barrier();
    EXPECT_EQ(std::atomic_ref(*comm.stop_word()).load(), 2u);  // in the memory of both
  });
  EXPECT_THAT(thrown, testing::Each(""));
}

TEST(ProcessComm, WhoHasLeftMayGoAndNobodyFails) {
  const std::string group = fresh_group();
  std::promise<void> gone;
  std::thread other([&] {
    {
      const auto comm = ProcessComm::join({1, 2, group}, {});
      comm->leave();
    }
    gone.set_value();
  });
  const auto comm = ProcessComm::join({0, 2, group}, {.on_failure = [](const std::exception_ptr&) { ADD_FAILURE(); }});
  comm->leave();
  gone.get_future().wait();
  comm->check();
  other.join();
}

std::string refusal(const ProcessRank& me, const ProcessCommOptions& options = {}) {
  try {
    ProcessComm::join(me, options);
  } catch (const Error& e) {
    return str(to_string(e.kind()), ": ", e.what());
  } catch (const Interrupted& e) {
    return e.what();
  }
  return "joined";
}

TEST(ProcessComm, WhoDoesNotComeOrDoesNotFitIsNamed) {
  EXPECT_THAT(refusal({0, 3, fresh_group()}, {.timeout_s = 0.1}), HasSubstr("missing: rank 1, 2"));
  EXPECT_THAT(refusal({1, 3, fresh_group()}, {.timeout_s = 0.1}), HasSubstr("rank 0 has not come"));
  EXPECT_THAT(refusal({3, 100, fresh_group()}), HasSubstr("unsupported: 100 processes"));
  std::string group = fresh_group();
  auto early = std::async(std::launch::async, [&] { return refusal({2, 3, group}); });
  EXPECT_THAT(refusal({0, 3, group}, {.timeout_s = 2}), HasSubstr("missing: rank 1"));
  EXPECT_THAT(early.get(), HasSubstr("missing: rank 1"));
  group = fresh_group();
  auto host = std::async(std::launch::async, [&] { return refusal({0, 2, group}); });
  EXPECT_THAT(refusal({1, 3, group}), HasSubstr("it is one of 3 ranks, rank 0 one of 2"));
  EXPECT_THAT(host.get(), HasSubstr("it is one of 3 ranks, rank 0 one of 2"));
}

TEST(ProcessComm, AGroupHasOneRankZero) {
  const std::string group = fresh_group();
  std::stop_source stop;
  auto host = std::async(std::launch::async, [&] {
    for (;;) {  // the other one may stand there for a moment
      std::string end = refusal({0, 2, group}, {.stop = stop.get_token()});
      if (end.find("another rank 0") == std::string::npos) return end;
    }
  });
  std::string second;
  do {  // until the first one is there
    second = refusal({0, 2, group}, {.timeout_s = 0});
  } while (second.find("missing") != std::string::npos);
  EXPECT_THAT(second, HasSubstr("another rank 0 is at"));
  stop.request_stop();
  EXPECT_EQ(host.get(), "interrupted");
}

TEST(ProcessComm, AWishToStopEndsTheWaiting) {
  for (const int rank : {0, 1}) {
    std::stop_source stop;
    stop.request_stop();
    EXPECT_THROW(ProcessComm::join({rank, 2, fresh_group()}, {.stop = stop.get_token()}), Interrupted);
  }
}

}  // namespace
}  // namespace firstlight

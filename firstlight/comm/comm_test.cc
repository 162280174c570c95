// SPDX-License-Identifier: Apache-2.0
#include "firstlight/comm/comm.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <string>
#include <thread>

#include "firstlight/base/error.h"

namespace firstlight {
namespace {

/// Runs fn once a rank, each on its own thread; what a rank threw is its message in the result ("" if nothing).
std::vector<std::string> on_all_ranks(int n, const std::function<void(Comm&)>& fn) {
  auto comms = make_thread_comms(n);
  std::vector<std::string> thrown(static_cast<size_t>(n));
  std::vector<std::thread> threads;
  for (int r = 0; r < n; ++r) {
    threads.emplace_back([&, r] {
      try {
        fn(*comms[static_cast<size_t>(r)]);
      } catch (const std::exception& e) {
        thrown[static_cast<size_t>(r)] = e.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return thrown;
}

/// Values at which the order of addition shows.
float value(int rank, size_t i, int round) {
  const uint32_t mixed = static_cast<uint32_t>(rank * 7919 + round * 104729) + static_cast<uint32_t>(i) * 2654435761u;
  return static_cast<float>(static_cast<int32_t>(mixed)) * (rank % 2 == 0 ? 1e-3f : 1e3f);
}

TEST(Comm, TheSumIsThatOfRankOrderToTheBitOnEveryRankAtEverySize) {
  for (const int n : {1, 2, 3, 5, 8}) {
    const auto thrown = on_all_ranks(n, [&](Comm& comm) {
      int round = 0;
      for (const size_t size :
           {size_t{576}, size_t{1}, size_t{0}, size_t{17}, size_t{5000}, size_t{16}, size_t{4999}}) {
        ++round;
        std::vector<float> data(size), expected(size);
        for (size_t i = 0; i < size; ++i) {
          data[i] = value(comm.rank(), i, round);
          expected[i] = value(0, i, round);
          for (int r = 1; r < n; ++r) expected[i] += value(r, i, round);
        }
        comm.all_reduce_sum(data, {});
        if (size != 0 && std::memcmp(data.data(), expected.data(), size * sizeof(float)) != 0) {
          throw Error(ErrorKind::bug, "wrong sum of " + std::to_string(size));
        }
      }
    });
    for (const std::string& what : thrown) EXPECT_EQ(what, "") << n << " ranks";
  }
}

TEST(Comm, ABarrierLetsNobodyThroughBeforeTheLast) {
  constexpr int kRanks = 4;
  std::vector<int> arrived(kRanks * 16, 0);  // plain ints, a cache line apart: the barrier alone orders them
  const auto thrown = on_all_ranks(kRanks, [&](Comm& comm) {
    for (int round = 1; round <= 300; ++round) {
      arrived[static_cast<size_t>(comm.rank()) * 16] = round;
      comm.barrier();
      for (size_t r = 0; r < kRanks; ++r) {
        if (arrived[r * 16] != round) throw Error(ErrorKind::bug, "a rank was let through early");
      }
      comm.barrier();
    }
  });
  for (const std::string& what : thrown) EXPECT_EQ(what, "");
}

TEST(Comm, AFailedRankEndsEveryCallOnEveryRankWithTheFirstCause) {
  for (int collective = 0; collective < 2; ++collective) {
    const auto thrown = on_all_ranks(3, [&](Comm& comm) {
      std::vector<float> data(100, 1.0f);
      comm.all_reduce_sum(data, {});
      if (comm.rank() == 1) {
        comm.fail(std::make_exception_ptr(Error(ErrorKind::damaged, "leaf 7")));
        comm.fail(std::make_exception_ptr(Error(ErrorKind::io, "a later cause")));
      }
      if (collective == 0) comm.barrier();
      if (collective == 1) comm.all_reduce_sum(data, {});
    });
    for (const std::string& what : thrown) EXPECT_EQ(what, "leaf 7");
  }
}

TEST(Comm, AFailureWakesRanksThatAlreadyWait) {
  const auto thrown = on_all_ranks(3, [](Comm& comm) {
    if (comm.rank() == 2) {
      std::this_thread::sleep_for(
          std::chrono::milliseconds(30));  // the others are asleep by then; if not, the test is merely weaker
      comm.fail(std::make_exception_ptr(Error(ErrorKind::io, "gone")));
    }
    comm.barrier();
  });
  for (const std::string& what : thrown) EXPECT_EQ(what, "gone");
}

TEST(Comm, RanksThatDisagreeOnASizeAllFail) {
  const auto thrown = on_all_ranks(3, [](Comm& comm) {
    std::vector<float> data(comm.rank() == 1 ? 10 : 11);
    comm.all_reduce_sum(data, {});
  });
  for (const std::string& what : thrown) EXPECT_NE(what.find("collective: rank"), std::string::npos) << what;
}

TEST(Comm, WaitingCostsNoProcessorTime) {
  double waited_cpu_s = 1;
  on_all_ranks(2, [&](Comm& comm) {
    if (comm.rank() == 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
      comm.barrier();
      return;
    }
    comm.barrier();
    rusage usage{};
    getrusage(RUSAGE_THREAD, &usage);
    const auto seconds = [](const timeval& t) {
      return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
    };
    waited_cpu_s = seconds(usage.ru_utime) + seconds(usage.ru_stime);
  });
  EXPECT_LT(waited_cpu_s, 0.05);  // a spinning wait would take 0.2 s
}

TEST(Comm, RanksAreWhereTheirDevicesAre) {
  EXPECT_EQ(make_comms(std::vector<Device>(1))[0]->path(), "one rank");
  const auto two = make_comms(std::vector<Device>(2));
  EXPECT_EQ(two[1]->path(), "threads");
  EXPECT_EQ(two[1]->rank(), 1);
  EXPECT_THROW(make_comms(std::vector<Device>{{}, {Device::Kind::cuda, 0}}), Error);
  EXPECT_THROW(make_comms({}), Error);
}

TEST(Comm, AGroupOfNoRanksIsRefused) { EXPECT_THROW(make_thread_comms(0), Error); }

}  // namespace
}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// Collectives between GPUs: over peer access where there are two, through host memory also where there is one.
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <string>
#include <thread>

#include "firstlight/base/error.h"
#include "firstlight/comm/comm.h"
#include "firstlight/device/buffer.h"
#include "firstlight/device/copy.h"
#include "firstlight/device/gpus.h"

namespace firstlight {
namespace {

Device gpu(int index) { return {Device::Kind::cuda, index}; }

/// Values at which the order of addition shows.
float value(int rank, size_t i, size_t round) {
  const uint32_t mixed = static_cast<uint32_t>(rank * 7919) + static_cast<uint32_t>(round) * 104729u +
                         static_cast<uint32_t>(i) * 2654435761u;
  return static_cast<float>(static_cast<int32_t>(mixed)) * (rank % 2 == 0 ? 1e-3f : 1e3f);
}

/// One rank on its thread: its end, its stream, and memory with 64 floats behind it that nobody may change.
struct OnRank {
  OnRank(Comm& end, Device where, size_t most)
      : comm(end), device(where), stream(where), memory(where, 4 * (most + 64)) {}
  void put(const std::vector<float>& values) {
    std::vector<float> guarded = values;
    guarded.resize(values.size() + 64, 12345.0f);
    copy(memory.data(), device, reinterpret_cast<const std::byte*>(guarded.data()), {}, 4 * guarded.size());
  }
  std::span<float> floats(size_t n) const { return {reinterpret_cast<float*>(memory.data()), n}; }
  /// The first n, after all that was queued.
  std::vector<float> fetch(size_t n) const {
    stream.wait();
    std::vector<float> all(n + 64);
    copy(reinterpret_cast<std::byte*>(all.data()), {}, memory.data(), device, 4 * all.size());
    for (size_t i = n; i < all.size(); ++i) {
      if (all[i] != 12345.0f) throw Error(ErrorKind::bug, "written past the end");
    }
    all.resize(n);
    return all;
  }
  Comm& comm;
  const Device device;
  const Stream stream;
  const Buffer memory;
};

/// What a group is made of, and runs a function on each rank's thread; what a rank threw, "" if nothing.
struct Ranks {
  Ranks(std::vector<Device> on, const CudaCommOptions& options = {}) : devices(std::move(on)) {
    for (const Device device : devices) start_device(device);
    comms = make_cuda_comms(devices, options);
  }
  std::vector<std::string> run(size_t most, const std::function<void(OnRank&)>& fn) {
    std::vector<std::string> thrown(devices.size());
    std::vector<std::thread> threads;
    for (size_t r = 0; r < devices.size(); ++r) {
      threads.emplace_back([&, r] {
        try {
          OnRank rank(*comms[r], devices[r], most);
          fn(rank);
        } catch (const std::exception& e) {
          thrown[r] = e.what();
          comms[r]->fail(std::current_exception());
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    return thrown;
  }
  std::vector<Device> devices;
  std::vector<std::unique_ptr<Comm>> comms;
};

void expect_sums(Ranks& ranks, const std::vector<size_t>& sizes) {
  size_t most = 1;
  for (const size_t n : sizes) most = std::max(most, n);
  const auto thrown = ranks.run(most, [&](OnRank& on) {
    for (size_t round = 0; round < sizes.size(); ++round) {
      const size_t n = sizes[round];
      std::vector<float> data(n), expected(n);
      for (size_t i = 0; i < n; ++i) {
        data[i] = value(on.comm.rank(), i, round);
        expected[i] = value(0, i, round);
        for (int r = 1; r < on.comm.size(); ++r) expected[i] += value(r, i, round);
      }
      on.put(data);
      on.comm.all_reduce_sum(on.floats(n), on.stream);
      const std::vector<float> sum = on.fetch(n);
      on.comm.check();
      if (n != 0 && std::memcmp(sum.data(), expected.data(), 4 * n) != 0)
        throw Error(ErrorKind::bug, "a wrong sum of " + std::to_string(n));
    }
  });
  for (const std::string& what : thrown) EXPECT_EQ(what, "") << thrown.size() << " ranks, " << ranks.comms[0]->path();
}

/// Odd counts, both sides of where the algorithm changes (for 2, 3 and 5 ranks), up to 32 MB and some.
const std::vector<size_t> kSizes = {
    576,           1,      0,      3,       17,      4096,          5000,    32768,   99999,  65536,
    131072,        262144, 262145, 300001,  1 << 20, (1 << 20) + 1, 4097,    3000003, 524288, 524289,
    (8 << 20) + 5, 7,      8192,   4 << 20, 262143,  (1 << 20) - 1, 2000000, 16,      4096,   4096};

class CudaComms : public testing::Test {
 protected:
  void SetUp() override {
    if (gpus().names.empty()) GTEST_SKIP() << "no GPU: " << gpus().why_none;
  }
};

class CudaPeers : public testing::Test {
 protected:
  void SetUp() override {
    if (gpus().names.size() < 2)
      GTEST_SKIP() << "peers are two GPUs at least, here are " << gpus().names.size() << " " << gpus().why_none;
    const auto two = make_cuda_comms(all(2));
    if (!two[0]->recordable()) GTEST_SKIP() << "no peer access: " << two[0]->path();
  }
  static std::vector<Device> all(size_t n) {
    std::vector<Device> devices;
    for (size_t r = 0; r < n; ++r) devices.push_back(gpu(static_cast<int>(r)));
    return devices;
  }
};

TEST_F(CudaComms, RanksThatShareAGpuGoThroughHostMemoryAndSaySo) {
  Ranks ranks({gpu(0), gpu(0)});
  EXPECT_FALSE(ranks.comms[0]->recordable());
  EXPECT_EQ(ranks.comms[0]->path(), "host memory (ranks 0 and 1 share cuda:0)");
  expect_sums(ranks, kSizes);
}

TEST_F(CudaComms, OneRankIsItsOwnSum) {
  Ranks ranks({gpu(0)});
  expect_sums(ranks, {100, 0, 7});
}

TEST_F(CudaPeers, TheSumIsThatOfRankOrderToTheBitOnEveryRankAtEverySize) {
  for (size_t n = 2; n <= std::min<size_t>(8, gpus().names.size()); ++n) {
    Ranks ranks(all(n));
    EXPECT_EQ(ranks.comms[0]->path(), "peer access");
    EXPECT_TRUE(ranks.comms[0]->recordable());
    expect_sums(ranks, kSizes);
  }
}

TEST_F(CudaPeers, HostMemoryGivesTheSameSums) {
  Ranks ranks(all(2), {.peer_access = false});
  EXPECT_EQ(ranks.comms[0]->path(), "host memory (as asked)");
  expect_sums(ranks, kSizes);
}

/// Nothing waits for the host between exchanges: queued by the thousand, of both kinds, each on the last one's result.
TEST_F(CudaPeers, ThousandsInARowOnOneStream) {
  Ranks ranks(all(2), {.spin = 1000});
  constexpr size_t kMost = 1'100'001;  // past the inbox
  const auto thrown = ranks.run(kMost, [&](OnRank& on) {
    std::vector<float> data(kMost), expected(kMost);
    for (size_t i = 0; i < kMost; ++i) expected[i] = data[i] = 0x1p-120f * static_cast<float>(1 + i % 1000);
    on.put(data);
    for (int round = 0; round < 6000; ++round) {
      const size_t n = round % 50 == 49 ? kMost : static_cast<size_t>(1 + round * 997 % 9000);
      on.comm.all_reduce_sum(on.floats(n), on.stream);  // doubles, exactly
      if (round % 100 == 99) {
        const std::vector<float> sum = on.fetch(kMost);
        on.comm.check();
        for (int past = round - 99; past <= round; ++past) {
          const size_t m = past % 50 == 49 ? kMost : static_cast<size_t>(1 + past * 997 % 9000);
          for (size_t i = 0; i < m; ++i) expected[i] *= 2;
        }
        if (sum != expected) throw Error(ErrorKind::bug, "wrong after round " + std::to_string(round));
        on.put(data);
        expected = data;
      }
    }
  });
  for (const std::string& what : thrown) EXPECT_EQ(what, "");
}

TEST_F(CudaPeers, AFailedRankEndsTheOthersWithItsCauseAndAResetMakesThemNew) {
  Ranks ranks(all(2));
  for (int round = 0; round < 3; ++round) {
    const auto thrown = ranks.run(1000, [&](OnRank& on) {
      on.put(std::vector<float>(1000, 1.0f));
      for (int i = 0; i < 5; ++i) on.comm.all_reduce_sum(on.floats(1000), on.stream);
      if (on.comm.rank() == 1) throw Error(ErrorKind::damaged, "leaf 7");
      on.comm.all_reduce_sum(on.floats(1000), on.stream);
    });
    for (const std::string& what : thrown) EXPECT_EQ(what, "leaf 7");
    ranks.comms[1]->reset();
    expect_sums(ranks, {5000, 1'200'001, 1});
  }
}

TEST_F(CudaPeers, RanksThatDisagreeOnASizeAllFail) {
  Ranks ranks(all(2));
  const auto thrown =
      ranks.run(1000, [](OnRank& on) { on.comm.all_reduce_sum(on.floats(on.comm.rank() == 1 ? 10 : 11), on.stream); });
  for (const std::string& what : thrown) EXPECT_NE(what.find("collective: rank"), std::string::npos) << what;
}

}  // namespace
}  // namespace firstlight

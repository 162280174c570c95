// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <optional>
#include <thread>
#include <type_traits>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/device/buffer.h"
#include "firstlight/device/copy.h"
#include "firstlight/device/gate.h"
#include "firstlight/device/gpus.h"

namespace firstlight {
namespace {

static_assert(!std::is_copy_constructible_v<Buffer> && !std::is_copy_assignable_v<Buffer>);

TEST(Device, IsNamedAsUsersWriteIt) {
  EXPECT_EQ(to_string(Device{}), "cpu");
  EXPECT_EQ(to_string(Device{Device::Kind::cuda, 3}), "cuda:3");
}

TEST(Buffer, IsAlignedToAHugePageFromTwoMebibytesOnAndToAPageBelow) {
  for (const uint64_t size : {1ull, 4096ull, 100000ull, (2ull << 20) - 1}) {
    const Buffer buffer({}, size);
    EXPECT_EQ(buffer.size(), size);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 4096, 0u) << size;
  }
  for (const uint64_t size : {2ull << 20, (2ull << 20) + 1, (9ull << 20) + 12345}) {
    std::vector<Buffer> several;
    for (int i = 0; i < 5; ++i) several.emplace_back(Device{}, size);
    for (const Buffer& buffer : several) {
      EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % (2 << 20), 0u) << size;
    }
  }
}

TEST(Buffer, IsZeroAndWritableToItsLastByte) {
  const Buffer buffer({}, (3u << 20) + 5);
  EXPECT_TRUE(std::all_of(buffer.data(), buffer.data() + buffer.size(), [](std::byte b) { return b == std::byte{0}; }));
  std::memset(buffer.data(), 0xab, buffer.size());
  EXPECT_EQ(buffer.bytes().back(), std::byte{0xab});
}

TEST(Buffer, MovesWithItsBytesAndLeavesAnEmptyOne) {
  Buffer a({}, 5u << 20);
  std::byte* data = a.data();
  data[7] = std::byte{42};
  Buffer b(std::move(a));
  EXPECT_EQ(b.data(), data);
  Buffer c({}, 4096);
  c = std::move(b);
  EXPECT_EQ(c.data(), data);
  EXPECT_EQ(c.size(), 5u << 20);
  EXPECT_EQ(c.data()[7], std::byte{42});
  EXPECT_EQ(b.data(), nullptr);  // NOLINT: the moved-from state is part of the contract
  EXPECT_EQ(b.size(), 0u);
  EXPECT_EQ(Buffer({}, 0).data(), nullptr);
}

TEST(Buffer, SaysHowMuchItCouldNotGet) {
  for (const uint64_t size : {~uint64_t{0}, uint64_t{1} << 62, uint64_t{1} << 47}) {
    try {
      const Buffer buffer({}, size);
      FAIL() << size << " bytes were given";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::out_of_memory);
      EXPECT_NE(std::string(error.what()).find(std::to_string(size)), std::string::npos) << error.what();
    }
  }
}

TEST(Buffer, OfADeviceThatIsNotThereIsRefused) {
  try {
    const Buffer buffer({Device::Kind::cuda, 99}, 4096);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), gpus().in_build ? ErrorKind::not_found : ErrorKind::unsupported);
    EXPECT_NE(std::string(error.what()).find("cuda:99"), std::string::npos) << error.what();
  }
}

TEST(Gpus, AreNamedOrAReasonIsGiven) { EXPECT_EQ(gpus().names.empty(), !gpus().why_none.empty()); }

ErrorKind kind_of_choice(std::string_view wanted, const Gpus& found) {
  try {
    choose_device(wanted, found);
  } catch (const Error& error) {
    return error.kind();
  }
  ADD_FAILURE() << wanted << " was taken";
  return ErrorKind::bug;
}

TEST(ChooseDevice, TakesTheFirstGpuOrTheCpuAndSaysWhy) {
  const Gpus two{{"A", "B"}, ""};
  EXPECT_EQ(choose_device("auto", two).device, (Device{Device::Kind::cuda, 0}));
  EXPECT_EQ(choose_device("cuda", two).device, (Device{Device::Kind::cuda, 0}));
  EXPECT_EQ(choose_device("cuda:1", two).device, (Device{Device::Kind::cuda, 1}));
  EXPECT_EQ(choose_device("cuda:1", two).why, "B");
  EXPECT_EQ(choose_device("cpu", two).device, Device{});
  const Gpus old{{}, "driver too old for runtime 13.0: has 12.4"};
  EXPECT_EQ(choose_device("auto", old).device, Device{});
  EXPECT_EQ(choose_device("auto", old).why, old.why_none);
}

TEST(ChooseDevice, RefusesAGpuByNameThatIsNotThere) {
  EXPECT_EQ(kind_of_choice("cuda:0", {{}, "no driver"}), ErrorKind::not_found);
  EXPECT_EQ(kind_of_choice("cuda:0", {{}, "this build has no CUDA", false}), ErrorKind::unsupported);
  EXPECT_EQ(kind_of_choice("cuda:2", {{"A", "B"}, ""}), ErrorKind::not_found);
  for (const char* word : {"", "gpu", "cuda:", "cuda:-1", "cuda:1x", "cuda0"}) {
    EXPECT_EQ(kind_of_choice(word, {{"A", "B"}, ""}), ErrorKind::bad_input) << word;
  }
}

/// Sets the variable for one test and puts back what was there.
class VisibleGpus : public testing::Test {
 protected:
  void SetUp() override {
    if (const char* is = std::getenv(kName)) before_ = is;
  }
  void TearDown() override {
    if (before_) {
      ::setenv(kName, before_->c_str(), 1);
    } else {
      ::unsetenv(kName);
    }
  }
  static std::string shown(const char* before, int n, int first = 0) {
    if (before != nullptr) {
      ::setenv(kName, before, 1);
    } else {
      ::unsetenv(kName);
    }
    show_gpus(n, first);
    return std::getenv(kName);
  }
  static constexpr const char* kName = "CUDA_VISIBLE_DEVICES";
  std::optional<std::string> before_;
};

TEST_F(VisibleGpus, AreTheFirstOfThoseThatWereVisible) {
  EXPECT_EQ(shown(nullptr, 1), "0");
  EXPECT_EQ(shown(nullptr, 3), "0,1,2");
  EXPECT_EQ(shown("2,GPU-1f,0", 2), "2,GPU-1f");
  EXPECT_EQ(shown("2,GPU-1f,0", 3), "2,GPU-1f,0");
  EXPECT_EQ(shown("2,GPU-1f,0", 9), "2,GPU-1f,0");
  EXPECT_EQ(shown("", 1), "");
}

TEST_F(VisibleGpus, AreOneOfThoseThatWereVisible) {
  EXPECT_EQ(shown(nullptr, 1, 2), "2");
  EXPECT_EQ(shown("2,GPU-1f,0", 1, 0), "2");
  EXPECT_EQ(shown("2,GPU-1f,0", 1, 1), "GPU-1f");
  EXPECT_EQ(shown("2,GPU-1f,0", 2, 1), "GPU-1f,0");
  EXPECT_EQ(shown("2,GPU-1f,0", 1, 2), "0");
  EXPECT_EQ(shown("2,GPU-1f,0", 1, 3), "");
}

TEST_F(VisibleGpus, AreLikelyOnlyWhereThereAreDeviceFiles) {
  const bool has_gpu = !gpus().names.empty();  // asked before they are hidden: the answer stays
  EXPECT_TRUE(likely_devices("cpu", 2).empty());
  EXPECT_TRUE(likely_devices("cuda:1000", 1).empty());
  ::setenv(kName, "", 1);
  EXPECT_TRUE(likely_devices("auto", 1).empty());
  if (!has_gpu) GTEST_SKIP() << "no GPU: " << gpus().why_none;
  ::setenv(kName, "0", 1);
  EXPECT_EQ(likely_devices("auto", 2), (std::vector<Device>(2, {Device::Kind::cuda, 0})));
}

TEST_F(VisibleGpus, AreLikelyAsFarAsCudaReadsTheList) {
  const auto n_of = [](const char* list) {
    ::setenv(kName, list, 1);
    int n = 0;
    while (!likely_devices(str("cuda:", n), 1, 4).empty()) ++n;
    return n;
  };
  ::unsetenv(kName);
  EXPECT_EQ(likely_devices("cuda:3", 1, 4).size(), 1);
  EXPECT_TRUE(likely_devices("auto", 1, 0).empty());
  EXPECT_EQ(n_of("3,1"), 2);
  EXPECT_EQ(n_of(" 0, 1 ,2"), 3);
  EXPECT_EQ(n_of("GPU-1f,GPU-2e"), 2);
  for (const char* none : {"", "-1", "NoDevFiles", "4", ",0", " ", "0,0", "1,2,1"})
    EXPECT_EQ(n_of(none), 0) << '"' << none << '"';
  for (const char* first : {"2", "2,", "2,-1,0", "2,,0", "2,7,0", "GPU-1f,0,MIG-2", "0,GPU-1f"})
    EXPECT_EQ(n_of(first), 1) << first;
}

TEST(RankDevices, AreOneAfterAnotherWhereNoneIsNamed) {
  const Gpus two{{"A", "B"}, ""};
  const auto gpu = [](int index) { return Device{Device::Kind::cuda, index}; };
  EXPECT_EQ(rank_devices("cuda", gpu(0), 2, two), (std::vector{gpu(0), gpu(1)}));
  EXPECT_EQ(rank_devices("auto", gpu(0), 3, two), (std::vector{gpu(0), gpu(1), gpu(0)}));
  EXPECT_EQ(rank_devices("cuda:1", gpu(1), 2, two), (std::vector{gpu(1), gpu(1)}));
  EXPECT_EQ(rank_devices("auto", {}, 2, {}), (std::vector{Device{}, Device{}}));
}

TEST(Copy, OnTheCpuCopiesAndClears) {
  const Buffer from({}, 5000), to({}, 5000);
  std::memset(from.data(), 7, 5000);
  copy(to.data(), {}, from.data(), {}, 4999);
  EXPECT_EQ(to.data()[4998], std::byte{7});
  EXPECT_EQ(to.data()[4999], std::byte{0});
  clear(to.data(), {}, 100);
  EXPECT_EQ(to.data()[99], std::byte{0});
  EXPECT_EQ(to.data()[100], std::byte{7});
}

TEST(FreeMemory, IsNoMoreThanTheLimitOnAddressSpaceLeaves) {
  struct rlimit before {};
  ASSERT_EQ(::getrlimit(RLIMIT_AS, &before), 0);
  uint64_t mapped_pages = 0;
  ASSERT_TRUE(std::ifstream("/proc/self/statm") >> mapped_pages);
  constexpr uint64_t kLeft = 256u << 20;
  struct rlimit little = before;
  little.rlim_cur = mapped_pages * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE)) + kLeft;
  ASSERT_EQ(::setrlimit(RLIMIT_AS, &little), 0);
  const uint64_t free = free_memory({});
  ASSERT_EQ(::setrlimit(RLIMIT_AS, &before), 0);
  EXPECT_LE(free, kLeft);
}

TEST(FreeMemory, IsMoreThanNothingAndLessThanAPetabyte) {
  EXPECT_GT(free_memory({}), 1u << 20);
  EXPECT_LT(free_memory({}), uint64_t{1} << 50);
}

TEST(Gates, LetWaitersThroughInAnyOrderOfOpening) {
  Gates gates(3);
  std::vector<int> data(3, 0);
  std::atomic<int> sum = 0;
  std::vector<std::thread> waiters;
  for (int i = 0; i < 3; ++i) {
    for (int copies = 0; copies < 2; ++copies) {
      waiters.emplace_back([&, i] {
        gates.wait(i);
        sum += data[static_cast<size_t>(i)];
      });
    }
  }
  for (const int i : {2, 0, 1}) {
    EXPECT_FALSE(gates.is_open(i));
    data[static_cast<size_t>(i)] = i + 1;  // visible through the gate, or the thread sanitizer speaks
    gates.open(i);
    EXPECT_TRUE(gates.is_open(i));
  }
  for (std::thread& waiter : waiters) waiter.join();
  EXPECT_EQ(sum, 2 * (1 + 2 + 3));
}

TEST(Gates, GiveTheFirstFailureToWaitersNowAndLaterButNotAtOpenGates) {
  Gates gates(2);
  gates.open(0);
  std::string seen;
  std::thread waiter([&] {
    try {
      gates.wait(1);
    } catch (const Error& error) {
      seen = error.what();
    }
  });
  gates.fail(std::make_exception_ptr(Error(ErrorKind::damaged, "first")));
  gates.fail(std::make_exception_ptr(Error(ErrorKind::io, "second")));
  waiter.join();
  EXPECT_EQ(seen, "first");
  EXPECT_THROW(gates.wait(1), Error);
  EXPECT_NO_THROW(gates.wait(0));
}

TEST(Gates, RefuseANumberThatIsNotTheirs) {
  Gates gates(1);
  EXPECT_THROW(gates.open(1), Error);
  EXPECT_THROW(gates.wait(-1), Error);
}

}  // namespace
}  // namespace firstlight

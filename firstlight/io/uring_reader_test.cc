// SPDX-License-Identifier: Apache-2.0
// What readers past the page cache do beyond the contract of all readers (reader_test.cc): direct reads, deep rings,
// registered memory.
#include "firstlight/io/uring_reader.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <fstream>
#include <future>
#include <map>
#include <mutex>
#include <numeric>
#include <random>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/device/buffer.h"
#include "firstlight/io/direct_file.h"
#include "firstlight/io/pread_reader.h"
#include "firstlight/io/raw_ring.h"
#include "firstlight/io/reader_testing.h"
#include "firstlight/io/staged_reader.h"

namespace firstlight {
namespace {

TEST(NextStep, GoesDirectlyOnlyInWholeAlignedUnits) {
  constexpr DirectAlignment k512{512, 512};
  struct Case {
    uint64_t offset, into, size, step;
    bool direct;
  };
  for (const Case& c : {
           Case{0, 0x10000, 4096, 4096, true},     // all of it
           Case{0, 0x10000, 4097, 4096, true},     // up to the last whole unit
           Case{4096, 0x10000, 511, 511, false},   // less than a unit
           Case{100, 0x10064, 5000, 412, false},   // first to the next unit …
           Case{512, 0x10200, 4588, 4096, true},   // … then whole ones …
           Case{4608, 0x11200, 492, 492, false},   // … then the rest
           Case{100, 0x10000, 5000, 5000, false},  // address and offset never aligned together
           Case{0, 0x10008, 4096, 4096, false},    //
           Case{100, 0x10064, 500, 500, false},    // reaches past the boundary, but holds no whole unit
           Case{100, 0x10064, 300, 300, false},    // does not reach it
       }) {
    const ReadStep step = next_step(c.offset, c.into, c.size, k512);
    EXPECT_EQ(step.size, c.step) << c.offset << " " << c.size;
    EXPECT_EQ(step.direct, c.direct) << c.offset << " " << c.size;
  }
  EXPECT_FALSE(next_step(0, 0, 4096, {}).direct);
  EXPECT_FALSE(next_step(512, 0x10200, 8192, {4096, 512}).direct) << "the address is less aligned than asked";
}

class DirectReaderTest : public testing::TestWithParam<const char*> {
 protected:
  static constexpr uint64_t kSize = (6u << 20) + 777;
  void SetUp() override {
    if (uring() && !why_no_io_uring().empty()) GTEST_SKIP() << "io_uring: " << why_no_io_uring();
    path_ = fs::path(testing::TempDir()) / str("uring_reader_test.", ::getpid());
    std::vector<char> bytes(kSize);
    for (uint64_t i = 0; i < kSize; ++i) bytes[i] = static_cast<char>(byte_at(i));
    std::ofstream(path_, std::ios::binary).write(bytes.data(), kSize);
    file_ = File::open(path_);
  }
  void TearDown() override { fs::remove(path_); }

  static bool uring() { return GetParam() == std::string_view("io_uring"); }
  static std::unique_ptr<Reader> make(int n_threads, int depth, uint64_t direct_from = 1) {
    if (!uring()) return std::make_unique<PreadReader>(n_threads * depth, nullptr, "pread", "", direct_from);
    UringOptions options;
    options.n_threads = n_threads;
    options.depth = depth;
    options.direct_from = direct_from;
    return make_uring_reader(options);
  }
  ReadCallback collect() {
    return [this](const ReadCompletion& done) {
      const std::lock_guard lock(mutex_);
      if (!results_.emplace(done.id, done.result).second) ADD_FAILURE() << "request " << done.id << " completed twice";
    };
  }
  static uint64_t n_wrong(const std::byte* at, uint64_t offset, uint64_t size) {
    uint64_t n = 0;
    for (uint64_t i = 0; i < size; ++i) n += at[i] != byte_at(offset + i);
    return n;
  }
  /// The file system of the test's directory can be read past the page cache.
  bool has_direct() const { return DirectFile(file_).why_not().empty(); }

  fs::path path_;
  std::shared_ptr<const File> file_;
  std::mutex mutex_;
  std::map<uint64_t, int64_t> results_;
};

TEST_P(DirectReaderTest, AnyRangeAtAnyAddressIsReadRightManyAtATime) {
  std::mt19937_64 random(7);
  for (const auto& [n_threads, depth] : {std::pair(1, 16), std::pair(3, 4)}) {
    const Buffer into({}, 16u << 20);
    std::fill(into.bytes().begin(), into.bytes().end(), std::byte{0});
    std::vector<ReadRequest> requests;
    uint64_t at = 0;
    while (at < (15u << 20)) {
      const uint64_t offset = random() % kSize;
      const uint64_t size =
          std::min<uint64_t>(random() % 3 == 0 ? random() % 9000 : random() % 400'000, kSize - offset);
      // A third of the addresses as the offset within a page, so that head, body and tail occur.
      if (random() % 3 == 0) at = (at + 4095) / 4096 * 4096 + offset % 4096;
      requests.push_back({requests.size(), file_, offset, size, into.data() + at});
      at += size + random() % 3;
    }
    results_.clear();
    const auto reader = make(n_threads, depth);
    reader->submit(requests, collect());
    reader->wait();
    ASSERT_EQ(results_.size(), requests.size());
    for (const ReadRequest& request : requests) {
      ASSERT_EQ(results_[request.id], static_cast<int64_t>(request.size));
      EXPECT_EQ(n_wrong(request.into, request.offset, request.size), 0u) << request.offset << " + " << request.size;
    }
    if (has_direct()) {
      EXPECT_THAT(reader->why(), testing::HasSubstr("past the page cache"));
    }
    EXPECT_THAT(reader->why(), testing::HasSubstr("through it"));
  }
}

TEST_P(DirectReaderTest, ShortRequestsGoThroughThePageCache) {
  const Buffer into({}, 8u << 20);
  const auto reader = make(1, 4, 1u << 20);
  const std::vector<ReadRequest> small{{0, file_, 0, 65536, into.data()}};
  reader->submit(small, collect());
  reader->wait();
  EXPECT_THAT(reader->why(), testing::Not(testing::HasSubstr("past the page cache")));
  const std::vector<ReadRequest> large{{1, file_, 0, 1u << 20, into.data()}};
  reader->submit(large, collect());
  reader->wait();
  if (has_direct()) {
    EXPECT_THAT(reader->why(), testing::HasSubstr("1.05 MB past the page cache"));
  }
  EXPECT_EQ(results_, (std::map<uint64_t, int64_t>{{0, 65536}, {1, 1 << 20}}));
}

TEST_P(DirectReaderTest, AFileThatWasCutAfterItWasOpenedSaysSo) {
  fs::resize_file(path_, (1u << 20) + 100);
  const Buffer into({}, 8u << 20);
  const auto reader = make(2, 4);
  const std::vector<ReadRequest> requests{{0, file_, 0, kSize, into.data()},
                                          {1, file_, 2u << 20, 1u << 20, into.data() + (4u << 20)},
                                          {2, file_, 0, 1u << 20, into.data() + (7u << 20)}};
  reader->submit(requests, collect());
  reader->wait();
  EXPECT_EQ(results_, (std::map<uint64_t, int64_t>{{0, -ENODATA}, {1, -ENODATA}, {2, 1 << 20}}));
}

TEST_P(DirectReaderTest, AReaderWithoutWorkKeepsNoFileOpen) {
  const Buffer into({}, 8u << 20);
  const auto reader = make(2, 4);
  const std::weak_ptr<const File> watched = file_;
  for (int round = 0; round < 3; ++round) {
    const auto n_open = [] { return std::distance(fs::directory_iterator("/proc/self/fd"), fs::directory_iterator()); };
    const auto before = n_open();
    std::vector<ReadRequest> requests;
    for (uint64_t i = 0; i < 6; ++i) requests.push_back({i, file_, i << 20, 1u << 20, into.data() + (i << 20)});
    results_.clear();
    reader->submit(requests, collect());
    reader->wait();
    EXPECT_EQ(results_.size(), 6u);
    EXPECT_EQ(n_open(), before);
  }
  file_.reset();
  EXPECT_TRUE(watched.expired());
}

TEST_P(DirectReaderTest, TheRingOfAStagedReaderIsRegisteredAndItsBytesAreRight) {
  const Buffer into({}, 8u << 20);
  const auto staged = std::make_unique<StagedReader>(make(2, 4), [] { return make_staging({}, {4, 256u << 10}); });
  staged->wait_until_ready();
  for (int round = 0; round < 2; ++round) {  // workers take the ring when they are idle: at the latest for the second
    std::fill(into.bytes().begin(), into.bytes().end(), std::byte{0});
    results_.clear();
    const ReadRequest all{0, file_, 0, kSize, into.data()};
    staged->submit({&all, 1}, collect());
    staged->wait();
    ASSERT_EQ(results_[0], static_cast<int64_t>(kSize));
    EXPECT_EQ(n_wrong(into.data(), 0, kSize), 0u);
  }
  EXPECT_THAT(staged->why(), testing::Not(testing::HasSubstr("not registered")));
}

TEST(UringReader, ARingThatCannotBeHadIsAnErrorInWords) {
  UringOptions options;
  options.make_ring = [](unsigned) -> std::unique_ptr<Ring> {
    throw Error(ErrorKind::unsupported, "io_uring: forbidden");
  };
  EXPECT_THROW(make_uring_reader(options), Error);
}

/// Tells when the second read has begun.
class SecondRead final : public RawRead {
 public:
  ssize_t pread(int fd, void* into, size_t size, off_t offset) override {
    if (++n_begun_ == 2) begun.set_value();
    return RawRead::pread(fd, into, size, offset);
  }
  std::promise<void> begun;

 private:
  std::atomic<int> n_begun_ = 0;
};

TEST(UringReader, AReadBeginsBeforeTheOneInWhosePlaceItComesIsHashed) {
  const auto file = File::open("/proc/self/exe");
  const auto raw = std::make_shared<SecondRead>();
  UringOptions options;
  options.n_threads = options.depth = 1;
  options.make_ring = [&](unsigned) { return std::make_unique<RawRing>(raw); };
  const std::unique_ptr<Reader> reader = make_uring_reader(options);
  std::array<std::byte, 32> into;
  const std::vector<ReadRequest> requests{{0, file, 0, 16, into.data()}, {1, file, 16, 16, into.data() + 16}};
  std::future<void> begun = raw->begun.get_future();
  int n_done = 0;
  reader->submit(requests, [&](const ReadCompletion& done) {
    EXPECT_EQ(done.result, 16);
    if (n_done++ > 0) return;
    EXPECT_EQ(begun.wait_for(std::chrono::seconds(20)), std::future_status::ready);
  });
  reader->wait();
  EXPECT_EQ(n_done, 2);
}

/// A direct read is refused although it is aligned as statx() asked: as file systems do that know better.
class RefusingRead final : public RawRead {
 public:
  ssize_t pread(int fd, void* into, size_t size, off_t offset) override {
    if ((::fcntl(fd, F_GETFL) & O_DIRECT) != 0) {
      ++n_refused;
      errno = EINVAL;
      return -1;
    }
    return RawRead::pread(fd, into, size, offset);
  }
  std::atomic<int> n_refused = 0;
};

TEST_P(DirectReaderTest, AFileSystemThatRefusesDirectReadsIsReadThroughThePageCacheAndThatIsSaid) {
  if (!has_direct()) GTEST_SKIP() << DirectFile(file_).why_not();
  const auto refusing = std::make_shared<RefusingRead>();
  UringOptions options;
  options.n_threads = 1;
  options.make_ring = [&](unsigned) { return std::make_unique<RawRing>(refusing); };
  const Buffer into({}, 8u << 20);
  const std::unique_ptr<Reader> reader =
      uring() ? make_uring_reader(options) : std::make_unique<PreadReader>(2, refusing, "pread", "", 1);
  std::vector<ReadRequest> requests;
  for (uint64_t i = 0; i < 6; ++i) requests.push_back({i, file_, i << 20, 1u << 20, into.data() + (i << 20)});
  reader->submit(requests, collect());
  reader->wait();
  for (uint64_t i = 0; i < 6; ++i) EXPECT_EQ(results_[i], 1 << 20);
  EXPECT_EQ(n_wrong(into.data(), 0, 6u << 20), 0u);
  EXPECT_GE(refusing->n_refused, 1);
  EXPECT_LE(refusing->n_refused, 6);  // those that were under way
  EXPECT_THAT(reader->why(), testing::HasSubstr("O_DIRECT refused"));
  EXPECT_THAT(reader->why(), testing::Not(testing::HasSubstr("past the page cache")));
}

TEST_P(DirectReaderTest, AFileOfAFileSystemWithoutDirectReadsIsReadAllTheSame) {
  const auto file = File::open("/proc/self/status");  // regular, without O_DIRECT
  EXPECT_FALSE(DirectFile(file).why_not().empty());
  const Buffer into({}, 4096);
  const auto reader = make(1, 2);
  const ReadRequest request{0, file, 0, 16, into.data()};
  reader->submit({&request, 1}, collect());
  reader->wait();
  EXPECT_EQ(results_[0], 16);
  EXPECT_THAT(reader->why(), testing::HasSubstr("no O_DIRECT"));
}

INSTANTIATE_TEST_SUITE_P(Readers, DirectReaderTest, testing::Values("pread", "io_uring"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// The choice of a reader: from findings that the test makes up, and from a file that is or is not in the page cache.
#include "firstlight/io/reader_choice.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <thread>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/io/mount.h"
#include "firstlight/io/ring.h"
#include "firstlight/io/uring_reader.h"

namespace firstlight {
namespace {

using testing::HasSubstr;
using testing::Not;

class ReaderChoiceTest : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = fs::path(testing::TempDir()) / str("reader_choice_test.", ::getpid());
    fs::create_directories(directory_);
    chooser_.memory = directory_ / "cache/readers";
    chooser_.residency = [this] { return residency_; };
    chooser_.why_no_uring = [this] { return why_no_uring_; };
    chooser_.why_no_direct = [this] { return why_no_direct_; };
    chooser_.measure = [this] {
      ++n_measured_;
      return speeds_;
    };
    files_ = {make_file("huge", uint64_t{2} << 30)};
  }
  void TearDown() override { fs::remove_all(directory_); }

  /// With a hole for content.
  std::shared_ptr<const File> make_file(const std::string& name, uint64_t size) {
    std::ofstream(directory_ / name).put('x');
    fs::resize_file(directory_ / name, size);
    return File::open(directory_ / name);
  }
  ReaderChoice choose() { return chooser_.choose(files_); }
  void write_memory(const std::string& text) {
    fs::create_directories(chooser_.memory.parent_path());
    std::ofstream(chooser_.memory, std::ios::trunc) << text;
  }

  fs::path directory_;
  ReaderChooser chooser_;
  std::vector<std::shared_ptr<const File>> files_;
  std::optional<Residency> residency_ = Residency{32, 0.0};
  std::string why_no_uring_, why_no_direct_, why_;
  std::optional<ReaderSpeeds> speeds_ = ReaderSpeeds{1.0e9, 2.0e9, 1.9e9};
  int n_measured_ = 0;
};

TEST_F(ReaderChoiceTest, AWarmPageCacheIsReadByPreadAndNothingIsMeasured) {
  residency_->cached = 0.95;
  EXPECT_EQ(choose().kind, ReaderKind::pread);
  EXPECT_THAT(choose().why, HasSubstr("95 % of 32 samples"));
  EXPECT_EQ(n_measured_, 0);
}

TEST_F(ReaderChoiceTest, ColdFilesGoToTheFasterReaderAndTheFiguresAreSaid) {
  const ReaderChoice choice = choose();
  EXPECT_EQ(choice.kind, ReaderKind::io_uring);
  EXPECT_THAT(choice.why, HasSubstr("io_uring 2.00 GB/s, pread past the page cache 1.90 GB/s, pread 1.00 GB/s, "
                                    "measured now on "));
  EXPECT_THAT(choice.why, Not(HasSubstr("pread is taken")));
  fs::remove(chooser_.memory);
  speeds_ = ReaderSpeeds{1.0e9, 1.01e9, 1.02e9};  // not enough to do without the page cache next time
  EXPECT_EQ(choose().kind, ReaderKind::pread);
  EXPECT_THAT(choose().why, HasSubstr("pread is taken: it finds again what is cached"));
  fs::remove(chooser_.memory);
  speeds_ = ReaderSpeeds{0, 0, 0};
  EXPECT_EQ(choose().kind, ReaderKind::pread);
}

TEST_F(ReaderChoiceTest, PreadPastThePageCacheIsTakenWhereItIsTheFastestOfThree) {
  speeds_ = ReaderSpeeds{1.0e9, 2.0e9, 2.3e9};
  for (int i = 0; i < 2; ++i) {  // measured, and remembered
    const ReaderChoice choice = choose();
    EXPECT_EQ(choice.kind, ReaderKind::pread_direct);
    EXPECT_TRUE(choice.cold);
    EXPECT_THAT(choice.why, HasSubstr("io_uring 2.00 GB/s, pread past the page cache 2.30 GB/s, pread 1.00 GB/s, "));
  }
  EXPECT_EQ(n_measured_, 1);
  residency_->cached = 0.6;
  EXPECT_EQ(choose().kind, ReaderKind::pread);
}

TEST_F(ReaderChoiceTest, WhatIsCachedCountsForPread) {
  residency_->cached = 0.4;  // 0.6 GB at 1 GB/s against 1 GB at 2
  EXPECT_EQ(choose().kind, ReaderKind::io_uring);
  residency_->cached = 0.6;
  EXPECT_EQ(choose().kind, ReaderKind::pread);
}

TEST_F(ReaderChoiceTest, AMeasurementIsMadeOnceAndRememberedForTheFileSystem) {
  EXPECT_EQ(choose().kind, ReaderKind::io_uring);
  speeds_ = ReaderSpeeds{9e9, 1e9, 1e9};
  const ReaderChoice again = choose();
  EXPECT_EQ(again.kind, ReaderKind::io_uring);
  EXPECT_EQ(n_measured_, 1);
  EXPECT_THAT(again.why, HasSubstr("measured on "));
  EXPECT_THAT(again.why, HasSubstr(chooser_.memory.native()));
  fs::remove(chooser_.memory);
  EXPECT_EQ(choose().kind, ReaderKind::pread);
  EXPECT_EQ(n_measured_, 2);
}

TEST_F(ReaderChoiceTest, AMemoryThatIsBrokenOrForeignIsIgnoredSaidAndReplaced) {
  choose();
  std::ifstream in(chooser_.memory);
  const std::string good{std::istreambuf_iterator<char>(in), {}};
  const size_t body = good.find('\n') + 1;
  for (const std::string& bad :
       {std::string("{\"json\": 1}\n"), "firstlight readers 5\n" + good.substr(body),
        good + "1e9 nan 0 0 0 0 12 ext4 x\n", good + "1e9 0 nan 0 0 0 12 ext4 x\n", good + "1e9 2e9 0 0 0 12 ext4 x\n",
        good + "1e9 2e9 -2 0 0 0 12 ext4 x\n", good + "1000\n", good.substr(0, body) + "-5" + good.substr(body),
        std::string(2 << 20, 'x'), std::string()}) {
    SCOPED_TRACE(bad.substr(0, 80));
    n_measured_ = 0;
    write_memory(bad);
    EXPECT_THAT(choose().why, HasSubstr("ignored"));
    EXPECT_EQ(n_measured_, 1);
    EXPECT_THAT(choose().why, Not(HasSubstr("ignored")));
    EXPECT_EQ(n_measured_, 1);
  }
}

TEST_F(ReaderChoiceTest, AMemoryIsOfOneFileSystemAndGrowsOld) {
  const SpeedMemory memory(chooser_.memory);
  EXPECT_EQ(memory.remember("ext4 /dev/a host 6", {{.pread = 1e9, .io_uring = 2e9}, 1000}), "");
  EXPECT_EQ(memory.remember("lustre x@tcp:/a b host 6", {{.pread = 3e9, .io_uring = 4e9}, 2000}), "");
  EXPECT_EQ(
      memory.remember(
          "ext4 /dev/a host 6",
          {{.pread = 5e9, .io_uring = 6e9, .pread_direct = 7e9, .latency_s = 8e-6, .deep = 9e9, .cufile = 1e9}, 3000}),
      "");
  std::string note;
  const ReaderSpeeds speeds = memory.recall("ext4 /dev/a host 6", 3001, note)->speeds;
  EXPECT_EQ(
      std::vector({speeds.pread, speeds.io_uring, speeds.pread_direct, speeds.latency_s, speeds.deep, speeds.cufile}),
      std::vector({5e9, 6e9, 7e9, 8e-6, 9e9, 1e9}));
  EXPECT_EQ(memory.recall("lustre x@tcp:/a b host 6", 3001, note)->speeds.pread, 3e9);
  EXPECT_FALSE(memory.recall("ext4 /dev/b host 6", 3001, note));
  EXPECT_TRUE(memory.recall("ext4 /dev/a host 6", 3000 + 30 * 86400, note));
  EXPECT_FALSE(memory.recall("ext4 /dev/a host 6", 3001 + 30 * 86400, note));
  EXPECT_FALSE(memory.recall("ext4 /dev/a host 6", 2999, note)) << "from the future";
  EXPECT_EQ(note, "");
}

TEST_F(ReaderChoiceTest, BehindANetworkLittlesLawSaysHowManyReadsAreUnderWay) {
  speeds_ = {2e9, 3e9, 2e9};
  EXPECT_EQ(choose().in_flight, 32);
  fs::remove(chooser_.memory);
  speeds_ = {2e9, 3e9, 2e9, 3.5e-3, 50e9};  // 175 MB under way, and as many again: 4 MiB each
  for (int i = 0; i < 2; ++i) {             // measured, and remembered
    const ReaderChoice choice = choose();
    EXPECT_EQ(choice.kind, ReaderKind::io_uring);
    EXPECT_EQ(choice.in_flight, 84);
    for (const char* part : {"io_uring 3.00 GB/s", "32 reads under way 50.0 GB/s", "takes 3.50 ms: 84 under way"})
      EXPECT_THAT(choice.why, HasSubstr(part));
  }
  why_no_uring_ = "not now";
  EXPECT_THAT(choose().why, Not(HasSubstr("under way"))) << "that was measured with it";
}

int64_t n_threads_now() { return std::distance(fs::directory_iterator("/proc/self/task"), fs::directory_iterator()); }

TEST_F(ReaderChoiceTest, PreadOfColdFilesHasAThreadForEachRequestUnderWay) {
  why_no_uring_ = "not here";
  speeds_ = ReaderSpeeds{.pread = 1e9, .pread_direct = 2e9};
  std::thread([] {}).join();  // with the first thread a sanitizer may start one of its own, which stays
  int64_t before = n_threads_now();
  for (int i = 0; i < 100; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    before = std::min(before, n_threads_now());
  }
  const auto n_threads = [&](int n_readers, int wanted) {
    // A thread that has been joined may be listed a moment longer.
    for (int i = 0; i < 5000 && n_threads_now() > before; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const std::unique_ptr<Reader> reader = make_reader(choose(), 2, n_readers);
    why_ = reader->why();
    for (int i = 0; i < 5000 && n_threads_now() - before < wanted; ++i)  // they start one another
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return n_threads_now() - before;
  };
  EXPECT_EQ(n_threads(1, 32), 32);
  EXPECT_THAT(why_, HasSubstr("32 threads wait for storage"));
  EXPECT_EQ(n_threads(4, 8), 8);
  residency_->cached = 0.95;
  EXPECT_EQ(n_threads(1, 2), 2);
  EXPECT_THAT(why_, Not(HasSubstr("wait for storage")));
}

TEST_F(ReaderChoiceTest, AMemoryThatCannotBeWrittenCostsNothingButIsSaid) {
  chooser_.memory = "/proc/firstlight/readers";
  EXPECT_THAT(choose().why, HasSubstr("not remembered"));
  chooser_.memory = "";
  const ReaderChoice choice = choose();
  EXPECT_EQ(choice.kind, ReaderKind::io_uring);
  EXPECT_THAT(choice.why, HasSubstr("no home directory"));
}

TEST_F(ReaderChoiceTest, WhereNothingCanBeMeasuredPreadReadsAndTheReasonIsSaid) {
  why_no_direct_ = "the file system has no O_DIRECT";
  EXPECT_EQ(choose().kind, ReaderKind::pread);
  EXPECT_THAT(choose().why, HasSubstr("the file system has no O_DIRECT"));
  EXPECT_EQ(n_measured_, 0);
  why_no_direct_.clear();
  speeds_ = std::nullopt;
  EXPECT_THAT(choose().why, HasSubstr("not enough cold bytes"));
  residency_ = std::nullopt;
  EXPECT_THAT(choose().why, HasSubstr("does not tell"));
  EXPECT_EQ(choose().kind, ReaderKind::pread);
}

TEST_F(ReaderChoiceTest, WithoutIoUringPreadReadsPastThePageCacheWhereThatIsFaster) {
  why_no_uring_ = "forbidden by somebody";
  speeds_ = ReaderSpeeds{.pread = 1e9, .pread_direct = 2e9};
  const ReaderChoice choice = choose();
  EXPECT_EQ(choice.kind, ReaderKind::pread_direct);
  EXPECT_THAT(choice.why, HasSubstr("pread past the page cache 2.00 GB/s, pread 1.00 GB/s, measured now on "));
  EXPECT_THAT(choice.why, HasSubstr("io_uring: forbidden by somebody"));
  EXPECT_THAT(choose().why, HasSubstr("io_uring: forbidden by somebody")) << "remembered, and said again";
  EXPECT_EQ(n_measured_, 1);
  residency_->cached = 0.6;
  EXPECT_EQ(choose().kind, ReaderKind::pread);
  residency_->cached = 0;
  why_no_uring_.clear();
  speeds_->io_uring = 3e9;
  EXPECT_EQ(choose().kind, ReaderKind::io_uring);
  EXPECT_EQ(n_measured_, 2) << "io_uring was not measured before";
  why_no_uring_ = "forbidden by somebody";
  EXPECT_EQ(choose().kind, ReaderKind::pread_direct);
  EXPECT_THAT(choose().why, Not(HasSubstr("io_uring 3"))) << "what it gave then is of no use";
  EXPECT_EQ(n_measured_, 2) << "pread's speeds are known";
  fs::remove(chooser_.memory);
  speeds_ = ReaderSpeeds{.pread = 1e9, .pread_direct = 1.02e9};
  EXPECT_EQ(choose().kind, ReaderKind::pread);
  files_ = {make_file("small", 500'000'000)};
  fs::remove(chooser_.memory);
  EXPECT_EQ(choose().kind, ReaderKind::pread_direct);
  EXPECT_THAT(choose().why, HasSubstr("pread past the page cache is taken for cold files"));
}

TEST_F(ReaderChoiceTest, ASmallColdModelGoesToIoUringUnlessItsFileSystemIsKnownToReadBetterOtherwise) {
  const std::shared_ptr<const File> huge = files_[0];
  files_ = {make_file("small", 500'000'000)};
  EXPECT_EQ(choose().kind, ReaderKind::io_uring);
  EXPECT_THAT(choose().why, HasSubstr("500 MB on "));
  EXPECT_THAT(choose().why, HasSubstr("too few to measure: io_uring is taken"));
  EXPECT_EQ(n_measured_, 0);
  residency_->cached = 0.4;
  EXPECT_EQ(choose().kind, ReaderKind::pread);
  EXPECT_THAT(choose().why, HasSubstr("pread is taken"));
  residency_->cached = 0;
  why_no_direct_ = "no O_DIRECT";
  EXPECT_EQ(choose().kind, ReaderKind::pread);
  why_no_direct_.clear();
  speeds_ = ReaderSpeeds{2e9, 1e9, 1e9};  // a network file system, say; a large model has been there
  files_ = {huge};
  choose();
  files_ = {make_file("small", 500'000'000)};
  EXPECT_EQ(choose().kind, ReaderKind::pread);
  EXPECT_THAT(choose().why, HasSubstr("measured on "));
}

TEST_F(ReaderChoiceTest, CufileIsTakenWhereItsSpeedIsKnownAndItsDriverOpensNow) {
  int n_made = 0;
  chooser_.direct = {Device{}, [&]() -> std::unique_ptr<DeviceReader> {
                       ++n_made;
                       throw Error(ErrorKind::unsupported, "libcufile: the driver is gone");
                     }};
  speeds_ = ReaderSpeeds{.pread = 1e9, .io_uring = 2e9, .pread_direct = 1e9, .cufile = 2.05e9};
  EXPECT_EQ(choose().kind, ReaderKind::io_uring) << "ahead by too little";
  EXPECT_EQ(n_made, 0) << "nothing to open for";
  fs::remove(chooser_.memory);
  speeds_->cufile = 4e9;
  EXPECT_EQ(choose().kind, ReaderKind::cufile);
  fs::remove(chooser_.memory);
  EXPECT_THAT(choose().why, HasSubstr("cufile 4.00 GB/s, io_uring 2.00 GB/s, pread past the page cache 1.00 GB/s, "
                                      "pread 1.00 GB/s, measured now"));
  const ReaderChoice later = choose();
  EXPECT_EQ(later.kind, ReaderKind::io_uring);
  EXPECT_EQ(n_made, 1);
  EXPECT_THAT(later.why, HasSubstr("cufile then, not now: libcufile: the driver is gone"));
  chooser_.direct.reset();
  EXPECT_EQ(choose().kind, ReaderKind::io_uring) << "a load into host memory";
  EXPECT_THAT(choose().why, Not(HasSubstr("cufile")));
}

TEST_F(ReaderChoiceTest, WhatWasNoCandidateThenIsMeasuredWhenItIsOne) {
  choose();
  EXPECT_EQ(n_measured_, 1);
  chooser_.direct = {Device{}, [] { return std::unique_ptr<DeviceReader>(); }};
  speeds_->cufile = 0;  // not to be had
  EXPECT_EQ(choose().kind, ReaderKind::io_uring);
  EXPECT_EQ(n_measured_, 2);
  choose();
  EXPECT_EQ(n_measured_, 2) << "that is remembered, too";
  fs::remove(chooser_.memory);
  why_no_direct_ = "no O_DIRECT";
  speeds_ = ReaderSpeeds{.pread = 1e9, .cufile = 4e9};
  const ReaderChoice choice = choose();
  EXPECT_EQ(choice.kind, ReaderKind::cufile);
  EXPECT_THAT(choice.why, HasSubstr("no O_DIRECT"));
  why_no_direct_.clear();
  choose();
  EXPECT_EQ(n_measured_, 4) << "past the page cache was not measured before";
}

TEST_F(ReaderChoiceTest, FilesOnAFileSystemThatIsMemoryAreSaidToBe) {
  const fs::path path = fs::path("/dev/shm") / str("reader_choice_test.", ::getpid());
  if (mount_of(path).type != "tmpfs" || !(std::ofstream(path) << std::string(1 << 20, 'x'))) {
    GTEST_SKIP() << "/dev/shm is no tmpfs that takes files";
  }
  files_ = {File::open(path)};
  fs::remove(path);
  chooser_.residency = nullptr;
  EXPECT_THAT(choose().why, HasSubstr("memory (tmpfs)"));
  EXPECT_EQ(choose().kind, ReaderKind::pread);
  UringOptions options;
  if (!why_no_io_uring().empty()) return;
  const auto reader = make_uring_reader(options);
  std::vector<std::byte> into(1 << 20);
  const std::vector<ReadRequest> requests{{0, files_[0], 0, into.size(), into.data()}};
  reader->submit(requests, [](const ReadCompletion&) {});
  reader->wait();
  EXPECT_THAT(reader->why(), Not(HasSubstr("past the page cache")));
  EXPECT_THAT(reader->why(), HasSubstr("memory (tmpfs)"));
}

TEST_F(ReaderChoiceTest, ResidencyIsWhatTheKernelHasCached) {
  const uint64_t size = 24u << 20;
  {
    const std::vector<char> bytes(size, 'x');
    std::ofstream(directory_ / "real", std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(size));
  }
  const auto file = File::open(directory_ / "real");
  ASSERT_EQ(::fsync(file->fd()), 0);
  const std::vector<std::shared_ptr<const File>> files{file};
  EXPECT_EQ(sample_residency(files)->cached, 1.0);
  EXPECT_EQ(sample_residency(files)->n_samples, 32);
  EXPECT_EQ(sample_residency({}).has_value(), false);
  ASSERT_EQ(posix_fadvise(file->fd(), 0, 0, POSIX_FADV_DONTNEED), 0);
  if (*cached_share(*file, 0, size) > 0.1) GTEST_SKIP() << "the file system keeps its pages";
  EXPECT_LT(sample_residency(files)->cached, 0.1);
  std::vector<std::byte> half(size / 2);
  posix_fadvise(file->fd(), 0, 0, POSIX_FADV_RANDOM);  // no read-ahead into the other half
  file->read(0, half);
  EXPECT_NEAR(sample_residency(files)->cached, 0.5, 0.1);
  EXPECT_NEAR(*cached_share(*file, 0, size / 2), 1.0, 0.01);
}

TEST_F(ReaderChoiceTest, ReadersAreMeasuredOnAColdFileAndSkippedOnAWarmOne) {
  const uint64_t size = 96u << 20;  // 16 MiB twice for each of three
  {
    const std::vector<char> bytes(size, 'x');
    std::ofstream(directory_ / "real", std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(size));
  }
  const std::vector<std::shared_ptr<const File>> files{File::open(directory_ / "real")};
  ASSERT_EQ(::fsync(files[0]->fd()), 0);
  std::string note;
  ReaderCandidates candidates{.n_threads = 2, .pread_direct = true};
  EXPECT_FALSE(measure_readers(files, candidates, {}, note).has_value());
  ASSERT_EQ(posix_fadvise(files[0]->fd(), 0, 0, POSIX_FADV_DONTNEED), 0);
  if (*cached_share(*files[0], 0, size) > 0.1) GTEST_SKIP() << "the file system keeps its pages";
  std::stop_source stopped;
  stopped.request_stop();
  EXPECT_THROW(measure_readers(files, candidates, stopped.get_token(), note), Interrupted);
  for (const bool io_uring : {false, true}) {
    if (io_uring && !why_no_io_uring().empty()) continue;
    ASSERT_EQ(posix_fadvise(files[0]->fd(), 0, 0, POSIX_FADV_DONTNEED), 0);
    candidates.io_uring = io_uring;
    const auto speeds = measure_readers(files, candidates, {}, note);
    ASSERT_TRUE(speeds.has_value());
    EXPECT_GT(speeds->pread, 1e6);
    EXPECT_GT(speeds->pread_direct, 1e6);
    EXPECT_TRUE(io_uring ? speeds->io_uring > 1e6 : speeds->io_uring == kNotMeasured);
    EXPECT_EQ(speeds->cufile, kNotMeasured);
    EXPECT_EQ(note, "");
  }
}

}  // namespace
}  // namespace firstlight

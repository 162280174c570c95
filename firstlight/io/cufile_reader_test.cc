// SPDX-License-Identifier: Apache-2.0
// The cuFile reader over a double of libcufile: its calls keep the interface's rules, and its faults are named.
#include "firstlight/io/cufile_reader.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <mutex>
#include <thread>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/io/reader_speeds.h"
#include "firstlight/io/reader_testing.h"
#include "firstlight/io/residency.h"
#include "tests/doubles/fake_cufile.h"

namespace firstlight {
namespace {

using ::testing::HasSubstr;
constexpr uint64_t kSize = 5'000'003;

class CufileReaderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    void* library = dlopen(FIRSTLIGHT_FAKE_CUFILE, RTLD_NOW | RTLD_LOCAL);
    ASSERT_NE(library, nullptr) << dlerror();
    fake_ = static_cast<FakeCufile*>(dlsym(library, kFakeCufileSymbol));
    ASSERT_NE(fake_, nullptr);
    fake_->reset();
    // O_DIRECT is asked for: not in memory.
    path_ = fs::path("/var/tmp") / str("cufile_reader_test.", ::getpid());
    std::string bytes(kSize, '\0');
    for (uint64_t i = 0; i < kSize; ++i) bytes[i] = static_cast<char>(byte_at(i));
    std::ofstream(path_, std::ios::binary) << bytes;
    file_ = File::open(path_);
    memory_.assign(kSize, std::byte{0xee});
  }
  void TearDown() override {
    fs::remove(path_);
    EXPECT_EQ(fake_->n_violations, 0);
    EXPECT_EQ(fake_->n_files, 0) << "registered files are left behind";
    EXPECT_EQ(fake_->n_buffers, 0) << "registered memory is left behind";
  }

  static std::shared_ptr<Cufile> open(bool allow_compatibility) {
    return Cufile::open(allow_compatibility, FIRSTLIGHT_FAKE_CUFILE);
  }
  std::unique_ptr<CufileReader> make_reader(bool allow_compatibility = true, int n_threads = 3) {
    CufileOptions options;
    options.n_threads = n_threads;
    options.open = [=] { return open(allow_compatibility); };
    options.enter_thread = [this] { ++n_entered_; };
    options.gpu = [this] {
      GpuUuid gpu;
      std::memcpy(gpu.data(), fake_->uuid, gpu.size());
      return gpu;
    };
    return std::make_unique<CufileReader>(options);
  }
  /// The whole file in pieces of `step` bytes, each to its place; the results in order.
  std::vector<int64_t> read_all(Reader& reader, uint64_t step) {
    std::vector<ReadRequest> requests;
    for (uint64_t at = 0; at < kSize; at += step) {
      requests.push_back({requests.size(), file_, at, std::min(step, kSize - at), memory_.data() + at});
    }
    std::vector<int64_t> results(requests.size());
    reader.submit(requests, [&](const ReadCompletion& done) { results[done.id] = done.result; });
    reader.wait();
    return results;
  }
  void expect_all_bytes() {
    for (uint64_t i = 0; i < kSize; ++i) ASSERT_EQ(memory_[i], byte_at(i)) << "byte " << i;
  }

  FakeCufile* fake_ = nullptr;
  fs::path path_;
  std::shared_ptr<const File> file_;
  std::vector<std::byte> memory_;
  std::atomic<int> n_entered_{0};
};

TEST_F(CufileReaderTest, EveryByteGoesToItsPlaceAlsoInShortReadsAndTheWayIsTold) {
  for (const uint64_t most : {UINT64_MAX, uint64_t{70'001}}) {
    fake_->reset();
    fake_->most_at_once = most;
    std::fill(memory_.begin(), memory_.end(), std::byte{0xee});
    const auto reader = make_reader(false);
    for (const int64_t result : read_all(*reader, 1u << 20)) EXPECT_GT(result, 0);
    expect_all_bytes();
    EXPECT_THAT(reader->why(), HasSubstr(str("libcufile 1.15; it counts ", fake_->n_reads, " reads: ", fake_->n_reads,
                                             " by nvidia-fs, 0 peer-to-peer, 0 through host memory")));
    EXPECT_EQ(reader->failure(), nullptr);
  }
  EXPECT_GE(n_entered_, 2);  // one thread at least, of each reader
}

TEST_F(CufileReaderTest, RegisteredMemoryIsReadByItsBase) {
  fake_->memory = memory_.data();
  fake_->memory_size = kSize;
  const auto reader = make_reader(false);
  const std::span<std::byte> arena = memory_;
  reader->use_memory({&arena, 1});
  EXPECT_EQ(fake_->n_buffers, 1);
  read_all(*reader, 1u << 20);
  expect_all_bytes();
  EXPECT_EQ(fake_->n_registered_reads, fake_->n_reads);
}

TEST_F(CufileReaderTest, MemoryThatCannotBeRegisteredIsReadToAllTheSameAndSaid) {
  fake_->most_pinned = 4096;
  const auto reader = make_reader(false);
  const std::span<std::byte> arena = memory_;
  reader->use_memory({&arena, 1});
  read_all(*reader, 1u << 20);
  expect_all_bytes();
  EXPECT_EQ(fake_->n_registered_reads, 0);
  EXPECT_THAT(reader->why(), HasSubstr("memory not registered: more memory than may be pinned"));
}

TEST_F(CufileReaderTest, CompatibilityModeIsTakenOnlyWhereItIsAllowedAndIsSaid) {
  fake_->has_nvfs = false;
  {
    const auto reader = make_reader(false);
    EXPECT_THROW(reader->wait_until_ready(), Error);
    for (const int64_t result : read_all(*reader, 1u << 20)) EXPECT_EQ(result, -EREMOTEIO);
    ASSERT_NE(reader->failure(), nullptr);
    try {
      std::rethrow_exception(reader->failure());
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::unsupported);
      EXPECT_THAT(e.what(), HasSubstr("the driver nvidia-fs is not loaded (cuFile error 5001)"));
    }
  }
  const auto reader = make_reader(true);
  read_all(*reader, 1u << 20);
  expect_all_bytes();
  EXPECT_THAT(reader->why(), HasSubstr("in compatibility mode: the driver nvidia-fs is not loaded"));
  EXPECT_THAT(reader->why(), HasSubstr(str(fake_->n_reads, " through host memory")));
}

TEST_F(CufileReaderTest, ItsErrorsAreErrnosOrNamedFailures) {
  fake_->fail_call = 2;
  fake_->fail_errno = EIO;
  {
    const auto reader = make_reader(true, 1);
    EXPECT_EQ(read_all(*reader, 1u << 20).at(2), -EIO);
    EXPECT_EQ(reader->failure(), nullptr);
  }
  fake_->reset();
  fake_->fail_call = 1;
  fake_->fail_code = 5036;
  const auto reader = make_reader(true, 1);
  const auto results = read_all(*reader, 1u << 20);
  EXPECT_EQ(results.at(0), 1 << 20);
  EXPECT_EQ(results.at(1), -EREMOTEIO);
  EXPECT_EQ(results.at(2), 1 << 20);
  try {
    std::rethrow_exception(reader->failure());
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::device);
    EXPECT_THAT(e.what(), HasSubstr("1048576 bytes at 1048576: GPU memory could not be pinned (cuFile error 5036)"));
  }
}

TEST_F(CufileReaderTest, InterruptedReadsGoOnAndAFileThatEndsIsNoData) {
  fake_->fail_call = 0;
  fake_->fail_errno = EINTR;
  const auto reader = make_reader();
  read_all(*reader, kSize);
  expect_all_bytes();
  std::atomic<int64_t> result{0};
  const ReadRequest past{0, file_, kSize - 10, 100, memory_.data()};
  reader->submit({&past, 1}, [&](const ReadCompletion& done) { result = done.result; });
  reader->wait();
  EXPECT_EQ(result, -ENODATA);
}

TEST_F(CufileReaderTest, AReadThatNeverEndsMeetsTheDeadline) {
  fake_->stall = true;
  const auto reader = make_reader(true, 2);
  std::vector<int64_t> results(3);
  std::vector<ReadRequest> requests;
  for (uint64_t i = 0; i < 3; ++i) requests.push_back({i, file_, i << 20, 1u << 20, memory_.data() + (i << 20)});
  reader->submit(requests, [&](const ReadCompletion& done) { results[done.id] = done.result; });
  while (fake_->n_stalled < 2) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  reader->set_deadline(Reader::Clock::now() + std::chrono::milliseconds(20));
  reader->wait();
  for (const int64_t result : results) EXPECT_EQ(result, -ETIMEDOUT);
  fake_->stall = false;  // the destructor waits for them
}

TEST_F(CufileReaderTest, HeldRequestsGoWhereTheyAreToldLaterOrAreCancelled) {
  const auto reader = make_reader();
  std::vector<int64_t> results(4);
  const ReadCallback done = [&](const ReadCompletion& completion) { results[completion.id] = completion.result; };
  std::vector<ReadRequest> requests;
  for (uint64_t i = 0; i < 4; ++i) requests.push_back({i, file_, i << 20, 1u << 20, nullptr});
  reader->hold();
  reader->submit(requests, done);
  EXPECT_EQ(fake_->n_reads, 0);
  reader->release([&](uint64_t id) { return memory_.data() + (id << 20); });
  reader->wait();
  EXPECT_EQ(results, std::vector<int64_t>(4, 1 << 20));
  for (uint64_t i = 0; i < 4u << 20; ++i) ASSERT_EQ(memory_[i], byte_at(i)) << "byte " << i;
  reader->hold();
  reader->submit(requests, done);
  reader->cancel();
  EXPECT_EQ(results, std::vector<int64_t>(4, -ECANCELED));
  reader->submit(requests, done);  // still held: there is no address yet
  EXPECT_EQ(fake_->n_reads, 4);
  reader->release([&](uint64_t id) { return memory_.data() + (id << 20); });
  reader->wait();
  EXPECT_EQ(results, std::vector<int64_t>(4, 1 << 20));
}

TEST_F(CufileReaderTest, ItsSpeedOnAColdFileIsMeasuredBesideTheOthersOrWhyThereIsNone) {
  fs::resize_file(path_, 160u << 20);
  file_ = File::open(path_);
  ASSERT_EQ(::fsync(file_->fd()), 0);
  const std::vector<std::shared_ptr<const File>> files{file_};
  const auto make_cold = [&] { return posix_fadvise(file_->fd(), 0, 0, POSIX_FADV_DONTNEED) == 0; };
  ASSERT_TRUE(make_cold());
  if (*cached_share(*file_, 0, file_->size()) > 0.1) GTEST_SKIP() << "the file system keeps its pages";
  const DirectReads direct{{}, [this] { return make_reader(/*allow_compatibility=*/false); }};
  std::string note;
  auto speeds = measure_readers(files, {.n_threads = 2, .direct = &direct}, {}, note);
  ASSERT_TRUE(speeds);
  EXPECT_GT(speeds->cufile, 1e6);
  EXPECT_GT(speeds->pread, 1e6);
  EXPECT_FALSE(speeds->has_past_cache());
  EXPECT_EQ(note, "");
  EXPECT_GE(fake_->n_reads, 2);
  fake_->has_nvfs = false;
  make_cold();
  speeds = measure_readers(files, {.n_threads = 2, .direct = &direct}, {}, note);
  ASSERT_TRUE(speeds);
  EXPECT_EQ(speeds->cufile, 0);
  EXPECT_GT(speeds->pread, 1e6);
  EXPECT_THAT(note, HasSubstr("; cufile: libcufile: no direct reads: the driver nvidia-fs is not loaded"));
}

TEST_F(CufileReaderTest, WithoutTheLibraryEveryRequestFailsWithTheLoadersWords) {
  CufileOptions options;
  options.open = [] { return Cufile::open(true, "libcufile-that-is-not-there.so.0"); };
  CufileReader reader(options);
  for (const int64_t result : read_all(reader, 1u << 20)) EXPECT_EQ(result, -EREMOTEIO);
  try {
    reader.wait_until_ready();
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::unsupported);
    EXPECT_THAT(e.what(), HasSubstr("libcufile-that-is-not-there.so.0"));
  }
}

TEST(CufileStats, AreFoundByTheUuidWhereverTheyStandAndMistrustedIfTheyDoNotAddUp) {
  GpuUuid uuid{};
  uuid[3] = std::byte{9};
  std::vector<std::byte> stats(4096);
  const auto put = [&](size_t at, std::vector<uint64_t> words) {
    std::memcpy(stats.data() + at, uuid.data(), uuid.size());
    std::memcpy(stats.data() + at + uuid.size(), words.data(), words.size() * sizeof(uint64_t));
  };
  EXPECT_FALSE(find_cufile_reads(stats.data(), stats.size(), uuid));
  put(4096 - 80, {100, 0, 0, 0, 6, 1, 2, 3});
  const auto found = find_cufile_reads(stats.data(), stats.size(), uuid);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->bytes, 100u);
  EXPECT_EQ(found->n_reads, 6u);
  EXPECT_EQ(found->n_p2p, 1u);
  EXPECT_EQ(found->n_nvfs, 2u);
  EXPECT_EQ(found->n_posix, 3u);
  EXPECT_FALSE(find_cufile_reads(stats.data(), stats.size() - 1, uuid));  // cut off
  put(4096 - 80, {100, 0, 0, 0, 7, 1, 2, 3});
  EXPECT_FALSE(find_cufile_reads(stats.data(), stats.size(), uuid));
}

}  // namespace
}  // namespace firstlight

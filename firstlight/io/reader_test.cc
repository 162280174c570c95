// SPDX-License-Identifier: Apache-2.0
// What every Reader must do; what only one of them does is in its own test.
#include "firstlight/io/reader.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "firstlight/base/str.h"
#include "firstlight/io/fault_read.h"
#include "firstlight/io/memory_reader.h"
#include "firstlight/io/pread_reader.h"
#include "firstlight/io/raw_ring.h"
#include "firstlight/io/reader_testing.h"
#include "firstlight/io/uring_reader.h"

namespace firstlight {
namespace {

using std::chrono::milliseconds;
constexpr auto kNever = Reader::Clock::time_point::max();

/// A file of `size` bytes byte_at(i), removed at the end of the test.
class ReaderTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (uring() && !why_no_io_uring().empty()) GTEST_SKIP() << "io_uring: " << why_no_io_uring();
  }
  static bool uring() { return GetParam() == std::string_view("io_uring"); }
  /// The kernel does the reads: for io_uring one at a time on each thread, for it and "direct" past the page cache
  /// where that can be.
  static std::unique_ptr<Reader> make_reader(int n_threads) {
    if (GetParam() == std::string_view("direct")) return std::make_unique<PreadReader>(n_threads, nullptr, "", "", 1);
    if (!uring()) return std::make_unique<PreadReader>(n_threads);
    UringOptions options;
    options.n_threads = n_threads;
    options.depth = 1;
    options.direct_from = 1;
    return make_uring_reader(options);
  }
  static std::unique_ptr<Reader> make_faulty_reader(std::shared_ptr<FaultyRead> faulty, int n_threads) {
    return uring() ? make_faulty_uring_reader(std::move(faulty), n_threads)
                   : firstlight::make_faulty_reader(std::move(faulty), n_threads);
  }
  std::shared_ptr<const File> make_file(uint64_t size) {
    const fs::path path = fs::path(::testing::TempDir()) / str("reader_test.", ::getpid(), ".", paths_.size());
    std::vector<char> bytes(size);
    for (uint64_t i = 0; i < size; ++i) bytes[i] = static_cast<char>(byte_at(i));
    std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(size));
    paths_.push_back(path);
    return File::open(path);
  }
  void TearDown() override {
    for (const fs::path& path : paths_) fs::remove(path);
  }

  /// Collects completions and counts doubles.
  ReadCallback collect() {
    return [this](const ReadCompletion& completion) {
      const std::lock_guard lock(mutex_);
      if (!results_.emplace(completion.id, completion.result).second) ++doubles_;
    };
  }
  size_t n_done() {
    const std::lock_guard lock(mutex_);
    return results_.size();
  }
  void expect_pattern(const std::byte* at, uint64_t offset, uint64_t size) {
    for (uint64_t i = 0; i < size; ++i) ASSERT_EQ(at[i], byte_at(offset + i)) << "byte " << offset + i;
  }

  std::vector<fs::path> paths_;
  std::mutex mutex_;
  std::map<uint64_t, int64_t> results_;
  int doubles_ = 0;
};

/// Requests of `each` bytes over the whole file, into `into`.
std::vector<ReadRequest> cut(const std::shared_ptr<const File>& file, std::vector<std::byte>& into, uint64_t each) {
  into.assign(file->size(), std::byte{0});
  std::vector<ReadRequest> requests;
  for (uint64_t at = 0; at < file->size(); at += each) {
    requests.push_back({requests.size(), file, at, std::min(each, file->size() - at), into.data() + at});
  }
  return requests;
}

TEST_P(ReaderTest, EveryByteArrivesAtItsAddressAndEveryRequestCompletesOnce) {
  const auto file = make_file(300'001);
  for (const int n_threads : {1, 3}) {
    std::vector<std::byte> into;
    const auto requests = cut(file, into, 4097);
    const auto reader = make_reader(n_threads);
    results_.clear();
    reader->submit(requests, collect());
    reader->wait();
    EXPECT_EQ(results_.size(), requests.size());
    EXPECT_EQ(doubles_, 0);
    for (const auto& request : requests) EXPECT_EQ(results_[request.id], static_cast<int64_t>(request.size));
    expect_pattern(into.data(), 0, into.size());
  }
}

TEST_P(ReaderTest, OneThreadServesInTheOrderOfSubmission) {
  const auto file = make_file(1000);
  std::vector<std::byte> into;
  const auto requests = cut(file, into, 10);
  std::vector<uint64_t> order;
  const auto reader = make_reader(1);
  reader->submit(requests, [&](const ReadCompletion& completion) { order.push_back(completion.id); });
  reader->wait();
  ASSERT_EQ(order.size(), requests.size());
  EXPECT_TRUE(std::is_sorted(order.begin(), order.end()));
}

TEST_P(ReaderTest, ShortReadsInterruptionsAndBusyCallsAreContinued) {
  const auto file = make_file(50'000);
  const auto faulty = std::make_shared<FaultyRead>(std::vector<Fault>{
      {.kind = Fault::Kind::short_read, .amount = 777},
      {.kind = Fault::Kind::error, .amount = EINTR, .first_call = 3, .n_calls = 4},
      {.kind = Fault::Kind::error, .amount = EAGAIN, .first_call = 10, .n_calls = 3},
  });
  std::vector<std::byte> into;
  const auto requests = cut(file, into, 20'000);
  const auto reader = make_faulty_reader(faulty, 2);
  reader->submit(requests, collect());
  reader->wait();
  for (const auto& request : requests) EXPECT_EQ(results_[request.id], static_cast<int64_t>(request.size));
  expect_pattern(into.data(), 0, into.size());
  EXPECT_GT(faulty->n_calls(), 50'000u / 777);
}

TEST_P(ReaderTest, AnErrorEndsItsRequestAndNoOther) {
  const auto file = make_file(1000);
  const auto faulty = std::make_shared<FaultyRead>(
      std::vector<Fault>{{.kind = Fault::Kind::error, .amount = EIO, .first_call = 2, .n_calls = 1}});
  std::vector<std::byte> into;
  const auto requests = cut(file, into, 100);
  const auto reader = make_faulty_reader(faulty, 1);
  reader->submit(requests, collect());
  reader->wait();
  for (const auto& request : requests) EXPECT_EQ(results_[request.id], request.id == 2 ? -EIO : 100) << request.id;
}

TEST_P(ReaderTest, TheEndOfTheFileInsideARequestIsSaid) {
  const auto file = make_file(1000);
  std::vector<std::byte> into(1000);
  const auto reader = make_reader(1);
  const std::vector<ReadRequest> requests{{0, file, 900, 101, into.data()},
                                          {1, file, 1000, 1, into.data()},
                                          {2, file, 5000, 10, into.data()},
                                          {3, file, 1000, 0, nullptr},
                                          {4, file, UINT64_MAX - 5, 10, into.data()}};
  reader->submit(requests, collect());
  reader->wait();
  EXPECT_EQ(results_, (std::map<uint64_t, int64_t>{{0, -ENODATA}, {1, -ENODATA}, {2, -ENODATA}, {3, 0}, {4, -EINVAL}}));
}

TEST_P(ReaderTest, ACallbackMaySubmitMore) {
  const auto file = make_file(1000);
  std::vector<std::byte> into(1000);
  const auto reader = make_reader(2);
  ReadCallback next = [&](const ReadCompletion& completion) {
    collect()(completion);
    if (completion.id == 99) return;
    const ReadRequest request{completion.id + 1, file, (completion.id + 1) * 10, 10,
                              into.data() + (completion.id + 1) * 10};
    reader->submit({&request, 1}, next);
  };
  const ReadRequest first{0, file, 0, 10, into.data()};
  reader->submit({&first, 1}, next);
  reader->wait();
  EXPECT_EQ(results_.size(), 100u);
  expect_pattern(into.data(), 0, 1000);
}

TEST_P(ReaderTest, CancelEndsWhatIsQueuedAndLetsWhatIsRunningFinish) {
  const auto file = make_file(1000);
  const auto faulty =
      std::make_shared<FaultyRead>(std::vector<Fault>{{.kind = Fault::Kind::stall, .first_call = 0, .n_calls = 1}});
  std::vector<std::byte> into;
  const auto requests = cut(file, into, 100);
  const auto reader = make_faulty_reader(faulty, 1);
  reader->submit(requests, collect());
  while (faulty->n_stalled() == 0) std::this_thread::yield();
  reader->cancel();
  while (n_done() < 9) std::this_thread::yield();  // although the only thread is stuck
  faulty->release();
  reader->wait();
  for (const auto& request : requests) EXPECT_EQ(results_[request.id], request.id == 0 ? 100 : -ECANCELED);
  EXPECT_EQ(doubles_, 0);

  results_.clear();
  reader->submit(requests, collect());  // a cancelled reader is as good as new
  reader->wait();
  expect_pattern(into.data(), 0, into.size());
}

TEST_P(ReaderTest, TheDeadlineEndsAlsoARequestThatIsStuckInTheKernel) {
  const auto file = make_file(1000);
  const auto faulty =
      std::make_shared<FaultyRead>(std::vector<Fault>{{.kind = Fault::Kind::stall, .first_call = 1, .n_calls = 2}});
  std::vector<std::byte> into;
  const auto requests = cut(file, into, 100);
  const auto reader = make_faulty_reader(faulty, 2);
  reader->submit(requests, collect());
  while (faulty->n_stalled() < 2) std::this_thread::yield();
  reader->set_deadline(Reader::Clock::now() + milliseconds(5));
  reader->wait();
  EXPECT_EQ(results_.size(), 10u);
  // Which request made the first call, two threads decide among themselves.
  const auto is = [](int64_t wanted) { return [=](const auto& result) { return result.second == wanted; }; };
  EXPECT_EQ(std::count_if(results_.begin(), results_.end(), is(100)), 1);
  EXPECT_EQ(std::count_if(results_.begin(), results_.end(), is(-ETIMEDOUT)), 9);

  reader->submit({requests.data(), 1}, [&](const ReadCompletion& late) { EXPECT_EQ(late.result, -ETIMEDOUT); });
  reader->wait();
  faulty->release();
  reader->set_deadline(kNever);
  results_.clear();
  std::vector<std::byte> fresh;  // the abandoned reads may still write into the first
  reader->submit(cut(file, fresh, 100), collect());
  reader->wait();
  EXPECT_EQ(results_.size(), 10u);
  EXPECT_EQ(doubles_, 0);
  expect_pattern(fresh.data(), 0, fresh.size());
}

TEST_P(ReaderTest, ADeadlineInThePastTakesNothingAndAFarOneChangesNothing) {
  const auto file = make_file(1000);
  std::vector<std::byte> into;
  const auto requests = cut(file, into, 100);
  const auto reader = make_reader(2);
  reader->set_deadline(Reader::Clock::now() - milliseconds(1));
  reader->submit(requests, collect());
  reader->wait();
  for (const auto& [id, result] : results_) EXPECT_EQ(result, -ETIMEDOUT) << id;
  EXPECT_EQ(results_.size(), 10u);
  results_.clear();
  reader->set_deadline(Reader::Clock::now() + std::chrono::hours(1));
  reader->submit(requests, collect());
  reader->wait();
  for (const auto& [id, result] : results_) EXPECT_EQ(result, 100) << id;
}

TEST_P(ReaderTest, TheDestructorCancelsTheQueueAndWaitsForTheRest) {
  const auto file = make_file(1000);
  const auto faulty =
      std::make_shared<FaultyRead>(std::vector<Fault>{{.kind = Fault::Kind::stall, .first_call = 0, .n_calls = 1}});
  std::vector<std::byte> into;
  const auto requests = cut(file, into, 100);
  auto reader = make_faulty_reader(faulty, 1);
  reader->submit(requests, collect());
  while (faulty->n_stalled() == 0) std::this_thread::yield();
  std::thread later([&] {
    while (n_done() < 9) std::this_thread::yield();  // the queue is cancelled only if the destructor has begun
    faulty->release();
  });
  reader->cancel();
  reader.reset();
  later.join();
  EXPECT_EQ(results_.size(), 10u);
  EXPECT_EQ(results_[0], 100);
  for (uint64_t id = 1; id < 10; ++id) EXPECT_EQ(results_[id], -ECANCELED);
  EXPECT_EQ(doubles_, 0);
}

TEST_P(ReaderTest, TheDestructorEndsABusyFileAndAnAbandonedRequest) {
  const auto file = make_file(1000);
  std::vector<std::byte> into;
  const auto requests = cut(file, into, 100);
  {
    const auto busy = std::make_shared<FaultyRead>(std::vector<Fault>{{.kind = Fault::Kind::error, .amount = EAGAIN}});
    const auto reader = make_faulty_reader(busy, 2);
    reader->submit(requests, collect());
    while (busy->n_calls() < 5) std::this_thread::yield();
  }
  EXPECT_EQ(results_.size(), 10u);
  for (const auto& [id, result] : results_) EXPECT_EQ(result, -ECANCELED);
  results_.clear();
  std::thread releaser;
  {
    const auto stuck = std::make_shared<FaultyRead>(std::vector<Fault>{{.kind = Fault::Kind::stall}});
    const auto reader = make_faulty_reader(stuck, 1);
    reader->set_deadline(Reader::Clock::now() + milliseconds(5));
    reader->submit(requests, collect());
    reader->wait();
    releaser = std::thread([stuck] { stuck->release(); });
  }
  releaser.join();
  EXPECT_EQ(results_.size(), 10u);
  EXPECT_EQ(doubles_, 0);
}

TEST_P(ReaderTest, ManyThreadsMaySubmitCancelAndWaitTogether) {
  const auto file = make_file(64'000);
  const auto faulty = std::make_shared<FaultyRead>(
      std::vector<Fault>{{.kind = Fault::Kind::short_read, .amount = 300},
                         {.kind = Fault::Kind::error, .amount = EIO, .first_call = 50, .n_calls = 1}});
  std::vector<std::byte> into(20 * 64'000);  // a place of its own for each round: an abandoned read may still write
  std::atomic<int> n_completions = 0;
  {
    const auto reader = make_faulty_reader(faulty, 3);
    std::vector<std::thread> users;
    for (uint64_t user = 0; user < 4; ++user) {
      users.emplace_back([&, user] {
        for (uint64_t round = 0; round < 20; ++round) {
          std::vector<ReadRequest> requests;
          for (uint64_t i = 0; i < 16; ++i) {
            const uint64_t at = user * 16'000 + i * 1000;
            requests.push_back({i, file, at, 1000, into.data() + round * 64'000 + at});
          }
          reader->submit(requests, [&](const ReadCompletion&) { ++n_completions; });
          if (round % 5 == user) reader->cancel();
          if (round == 12) reader->set_deadline(Reader::Clock::now() + milliseconds(1));
          if (round % 3 == 0) reader->wait();
          if (round == 15) reader->set_deadline(kNever);
        }
      });
    }
    for (std::thread& user : users) user.join();
  }
  EXPECT_EQ(n_completions, 4 * 20 * 16);
}

TEST_P(ReaderTest, MemoryStandsInForAFilesStorage) {
  const auto file = make_file(1000), other = make_file(1000);
  const auto memory = std::make_shared<MemoryRead>();
  std::vector<std::byte> content(600);
  for (size_t i = 0; i < content.size(); ++i) content[i] = static_cast<std::byte>(i / 7);
  memory->put(*file, content);
  std::vector<std::byte> into(700), from_disk(1000);
  const auto reader = make_memory_reader(memory, 2);
  const std::vector<ReadRequest> requests{
      {0, file, 100, 500, into.data()}, {1, file, 500, 200, into.data() + 500}, {2, other, 0, 1000, from_disk.data()}};
  reader->submit(requests, collect());
  reader->wait();
  EXPECT_EQ(results_, (std::map<uint64_t, int64_t>{{0, 500}, {1, -ENODATA}, {2, 1000}}));
  EXPECT_TRUE(std::equal(into.begin(), into.begin() + 500, content.begin() + 100));
  expect_pattern(from_disk.data(), 0, 1000);
  EXPECT_EQ(reader->name(), "memory");
}

TEST_P(ReaderTest, AFlippedByteAndACutFileLookAsSuchOnlyWhereTheyWereAsked) {
  const auto file = make_file(1000);
  const auto faulty = std::make_shared<FaultyRead>(
      std::vector<Fault>{{.kind = Fault::Kind::flip, .amount = 250, .n_calls = 3},
                         {.kind = Fault::Kind::end_of_file, .amount = 950, .file = paths_[0].filename()},
                         {.kind = Fault::Kind::error, .amount = EIO, .file = "another file"}});
  std::vector<std::byte> into;
  const auto requests = cut(file, into, 100);
  const auto reader = make_faulty_reader(faulty, 1);
  reader->submit(requests, collect());
  reader->wait();
  EXPECT_EQ(results_[9], -ENODATA);
  EXPECT_EQ(results_[8], 100);
  EXPECT_EQ(into[250], byte_at(250) ^ std::byte{1});
  into[250] ^= std::byte{1};
  expect_pattern(into.data(), 0, 900);
}

INSTANTIATE_TEST_SUITE_P(Readers, ReaderTest, ::testing::Values("pread", "direct", "io_uring"),
                         [](const auto& param) { return std::string(param.param); });

}  // namespace
}  // namespace firstlight

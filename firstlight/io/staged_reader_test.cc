// SPDX-License-Identifier: Apache-2.0
// The staged reader over host memory: what a GPU's copies do late, these stagings do late on purpose.
#include "firstlight/io/staged_reader.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <future>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/io/fault_read.h"
#include "firstlight/io/raw_ring.h"
#include "firstlight/io/reader_testing.h"

namespace firstlight {
namespace {

using std::chrono::milliseconds;

/// Copies only when it is asked to finish: a completion before that would show bytes that are not there.
class LateStaging final : public Staging {
 public:
  LateStaging(int n_slots, uint64_t slot_bytes, int fail_start = -1, int fail_finish = -1,
              uint64_t read_bytes = UINT64_MAX)
      : read_bytes_(read_bytes),
        memory_(static_cast<size_t>(n_slots), std::vector<std::byte>(slot_bytes)),
        pending_(static_cast<size_t>(n_slots)),
        fail_start_(fail_start),
        fail_finish_(fail_finish) {}
  int n_slots() const override { return static_cast<int>(memory_.size()); }
  uint64_t slot_bytes() const override { return memory_[0].size(); }
  uint64_t read_bytes() const override { return read_bytes_; }
  std::byte* slot(int i) override { return memory_[static_cast<size_t>(i)].data(); }
  void start(int i, std::byte* into, uint64_t bytes) override {
    if (n_started_++ == fail_start_) throw Error(ErrorKind::device, "start failed");
    pending_[static_cast<size_t>(i)] = {into, bytes};
  }
  void fetch(int, uint64_t, const std::byte*, uint64_t) override { throw Error(ErrorKind::bug, "nobody fetches"); }
  bool finished(int i) override {
    if (n_asked_++ % 3 != 2) return false;
    if (n_finished_++ == fail_finish_) throw Error(ErrorKind::device, "finish failed");
    const auto [into, bytes] = pending_[static_cast<size_t>(i)];
    std::memcpy(into, slot(i), bytes);
    return true;
  }

 private:
  uint64_t read_bytes_;
  std::vector<std::vector<std::byte>> memory_;
  std::vector<std::pair<std::byte*, uint64_t>> pending_;
  int fail_start_, fail_finish_;
  std::atomic<int> n_started_{0};
  int n_asked_ = 0, n_finished_ = 0;
};

/// Over pread and over io_uring.
class StagedReaderTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    path_ = fs::path(testing::TempDir()) / str("staged_reader_test.", ::getpid());
    std::vector<char> bytes(kSize);
    for (uint64_t i = 0; i < kSize; ++i) bytes[i] = static_cast<char>(byte_at(i));
    std::ofstream(path_, std::ios::binary).write(bytes.data(), kSize);
    file_ = File::open(path_);
    into_.assign(kSize, std::byte{0});
  }
  void TearDown() override { fs::remove(path_); }

  std::vector<ReadRequest> requests(uint64_t each) {
    std::vector<ReadRequest> all;
    for (uint64_t at = 0; at < kSize; at += each) {
      all.push_back({all.size(), file_, at, std::min(each, kSize - at), into_.data() + at});
    }
    return all;
  }
  /// A completion without an error is checked at once: its bytes must be there already.
  ReadCallback check(const std::vector<ReadRequest>& of) {
    return [this, of](const ReadCompletion& done) {
      const ReadRequest& request = of[done.id];
      const std::lock_guard lock(mutex_);
      if (!results_.emplace(done.id, done.result).second) ADD_FAILURE() << "request " << done.id << " completed twice";
      if (done.result < 0) return;
      EXPECT_EQ(done.result, static_cast<int64_t>(request.size));
      for (uint64_t i = 0; i < request.size; ++i) ASSERT_EQ(request.into[i], byte_at(request.offset + i));
    };
  }
  std::map<int64_t, int> by_result() {
    const std::lock_guard lock(mutex_);
    std::map<int64_t, int> counts;
    for (const auto& [id, result] : results_) counts[std::min<int64_t>(result, 0)] += 1;
    return counts;
  }
  static std::unique_ptr<Reader> make_faulty_reader(std::shared_ptr<FaultyRead> faulty, int n_threads) {
    return GetParam() == std::string_view("io_uring") ? make_faulty_uring_reader(std::move(faulty), n_threads)
                                                      : firstlight::make_faulty_reader(std::move(faulty), n_threads);
  }
  static std::unique_ptr<StagedReader> make(std::vector<Fault> faults, int n_slots, uint64_t slot_bytes,
                                            int fail_start = -1, int fail_finish = -1) {
    return make_over(std::make_shared<FaultyRead>(std::move(faults)), n_slots, slot_bytes, fail_start, fail_finish);
  }
  static std::unique_ptr<StagedReader> make_over(std::shared_ptr<FaultyRead> faulty, int n_slots, uint64_t slot_bytes,
                                                 int fail_start = -1, int fail_finish = -1) {
    return std::make_unique<StagedReader>(make_faulty_reader(std::move(faulty), 2), [=] {
      return std::make_unique<LateStaging>(n_slots, slot_bytes, fail_start, fail_finish);
    });
  }

  static constexpr uint64_t kSize = 100'003;
  fs::path path_;
  std::shared_ptr<const File> file_;
  std::vector<std::byte> into_;
  std::mutex mutex_;
  std::map<uint64_t, int64_t> results_;
};

TEST_P(StagedReaderTest, ARequestCompletesOnceAndWhenItsBytesHaveArrived) {
  for (const uint64_t each : {777u, 1000u, 1001u, 50'000u, 200'000u}) {  // shorter and longer than a slot
    std::fill(into_.begin(), into_.end(), std::byte{0});
    results_.clear();
    const auto all = requests(each);
    const auto reader = make({{.kind = Fault::Kind::short_read, .amount = 333}}, 3, 1000);
    reader->submit(all, check(all));
    reader->wait();
    EXPECT_EQ(results_.size(), all.size());
    EXPECT_EQ(by_result(), (std::map<int64_t, int>{{0, static_cast<int>(all.size())}})) << each;
    EXPECT_EQ(std::count_if(into_.begin(), into_.end(),
                            [&](std::byte& b) { return b != byte_at(static_cast<uint64_t>(&b - into_.data())); }),
              0);
  }
}

TEST_P(StagedReaderTest, ASlotIsFilledBySeveralReadsAndCopiedWhenTheLastHasCome) {
  for (const uint64_t read : {1u, 250u, 333u, 999u, 1000u}) {
    results_.clear();
    std::fill(into_.begin(), into_.end(), std::byte{0});
    const auto all = requests(read == 1 ? 40'000 : 2500);
    const auto faulty = std::make_shared<FaultyRead>(std::vector<Fault>{});
    StagedReader reader(make_faulty_reader(faulty, 2),
                        [read] { return std::make_unique<LateStaging>(3, 1000, -1, -1, read); });
    reader.submit({all.data(), read == 1 ? 1 : all.size()}, check(all));
    reader.wait();
    EXPECT_EQ(by_result(), (std::map<int64_t, int>{{0, read == 1 ? 1 : static_cast<int>(all.size())}})) << read;
    if (GetParam() == std::string_view("pread")) {
      EXPECT_GE(faulty->n_calls(), (read == 1 ? 40'000 : kSize) / read);
    }
  }
}

TEST_P(StagedReaderTest, AFailedReadOfASlotFailsItsRequestAloneAndTheSlotIsUsedAgain) {
  const auto all = requests(5000);
  const auto faulty = std::make_shared<FaultyRead>(
      std::vector<Fault>{{.kind = Fault::Kind::error, .amount = EIO, .first_call = 7, .n_calls = 2}});
  StagedReader reader(make_faulty_reader(faulty, 1),
                      [] { return std::make_unique<LateStaging>(1, 1000, -1, -1, 100); });
  reader.submit(all, check(all));
  reader.wait();
  EXPECT_EQ(by_result(), (std::map<int64_t, int>{{0, static_cast<int>(all.size()) - 1}, {-EIO, 1}}));
}

TEST_P(StagedReaderTest, HeldRequestsAreReadButGoNowhereUntilTheirAddressIsKnown) {
  auto all = requests(1000);
  const auto faulty = std::make_shared<FaultyRead>(std::vector<Fault>{});
  const auto reader = make_over(faulty, 3, 1000);
  reader->hold();
  auto unplaced = all;
  for (ReadRequest& request : unplaced) request.into = nullptr;
  reader->submit(unplaced, check(all));
  while (faulty->n_calls() < 3) std::this_thread::sleep_for(milliseconds(1));
  std::this_thread::sleep_for(milliseconds(5));
  EXPECT_LT(faulty->n_calls(), 20u);  // 3 slots are full (io_uring may take two calls for one), 98 pieces wait
  EXPECT_TRUE(by_result().empty());
  reader->release([&](uint64_t id) { return all[id].into; });
  reader->wait();
  EXPECT_EQ(by_result()[0], static_cast<int>(all.size()));
}

TEST_P(StagedReaderTest, HeldRequestsEndByCancelAndByTheDestructor) {
  const auto all = requests(1000);
  for (const bool cancelled : {true, false}) {
    results_.clear();
    const auto faulty = std::make_shared<FaultyRead>(std::vector<Fault>{});
    auto reader = make_over(faulty, 3, 1000);
    reader->hold();
    reader->submit(all, check(all));
    while (faulty->n_calls() < 3) std::this_thread::sleep_for(milliseconds(1));
    if (cancelled) {
      std::this_thread::sleep_for(milliseconds(5));
      reader->cancel();
      reader->wait();
    }
    reader.reset();
    EXPECT_EQ(by_result(), (std::map<int64_t, int>{{-ECANCELED, static_cast<int>(all.size())}}));
  }
}

TEST_P(StagedReaderTest, ARequestOfNoBytesCompletes) {
  const std::vector<ReadRequest> all = {{0, file_, 5, 0, into_.data()}};
  const auto reader = make({}, 2, 100);
  reader->submit(all, check(all));
  reader->wait();
  EXPECT_EQ(results_.at(0), 0);
}

TEST_P(StagedReaderTest, AnErrorOfOnePieceIsTheRequestsAndOthersGoOn) {
  const auto all = requests(20'000);
  const auto reader = make({{.kind = Fault::Kind::error, .amount = EIO, .first_call = 25, .n_calls = 1}}, 4, 1000);
  reader->submit(all, check(all));
  reader->wait();
  EXPECT_EQ(by_result(), (std::map<int64_t, int>{{0, 5}, {-EIO, 1}}));
  EXPECT_EQ(reader->failure(), nullptr);
}

TEST_P(StagedReaderTest, AFileThatEndsEarlySaysSo) {
  const auto all = requests(kSize);
  const auto reader = make({{.kind = Fault::Kind::end_of_file, .amount = 60'000}}, 4, 1000);
  reader->submit(all, check(all));
  reader->wait();
  EXPECT_EQ(results_.at(0), -ENODATA);
}

TEST_P(StagedReaderTest, AFailedCopyEndsAllThatFollowsAndKeepsItsCause) {
  for (const bool at_start : {true, false}) {
    results_.clear();
    const auto all = requests(1000);
    const auto reader = make({}, 4, 1000, at_start ? 10 : -1, at_start ? -1 : 10);
    reader->submit(all, check(all));
    reader->wait();
    EXPECT_EQ(results_.size(), all.size());
    EXPECT_GE(by_result()[-EREMOTEIO], 1);
    results_.clear();
    reader->submit(all, check(all));
    reader->wait();
    EXPECT_EQ(by_result(), (std::map<int64_t, int>{{-EREMOTEIO, static_cast<int>(all.size())}}));
    ASSERT_NE(reader->failure(), nullptr);
    EXPECT_THROW(std::rethrow_exception(reader->failure()), Error);
  }
}

TEST_P(StagedReaderTest, AStagingThatCannotBeMadeFailsEveryRequest) {
  StagedReader reader(make_faulty_reader(std::make_shared<FaultyRead>(std::vector<Fault>{}), 1),
                      []() -> std::unique_ptr<Staging> { throw Error(ErrorKind::device, "no ring"); });
  const auto all = requests(5000);
  reader.submit(all, check(all));
  reader.wait();
  EXPECT_EQ(by_result(), (std::map<int64_t, int>{{-EREMOTEIO, static_cast<int>(all.size())}}));
  EXPECT_THROW(std::rethrow_exception(reader.failure()), Error);
}

TEST_P(StagedReaderTest, TheDeviceStartsOnceAndDoesNotWaitForTheRing) {
  std::promise<void> go;
  std::atomic<int> n_started = 0;
  StagedReader reader(
      make_faulty_reader(std::make_shared<FaultyRead>(std::vector<Fault>{}), 1),
      [wait = go.get_future().share()] {
        wait.get();
        return std::make_unique<LateStaging>(2, 1000);
      },
      [&] { ++n_started; });
  reader.wait_until_ready();  // or this would never return
  EXPECT_EQ(n_started, 1);
  go.set_value();
  const auto all = requests(5000);
  reader.submit(all, check(all));
  reader.wait();
  EXPECT_EQ(by_result(), (std::map<int64_t, int>{{0, static_cast<int>(all.size())}}));
  EXPECT_EQ(n_started, 1);
}

TEST_P(StagedReaderTest, ADeviceThatDoesNotStartFailsEveryRequest) {
  StagedReader reader(
      make_faulty_reader(std::make_shared<FaultyRead>(std::vector<Fault>{}), 1),
      [] { return std::make_unique<LateStaging>(2, 1000); }, [] { throw Error(ErrorKind::device, "no context"); });
  const auto all = requests(5000);
  reader.submit(all, check(all));
  reader.wait();
  EXPECT_EQ(by_result(), (std::map<int64_t, int>{{-EREMOTEIO, static_cast<int>(all.size())}}));
  EXPECT_THROW(reader.wait_until_ready(), Error);
}

TEST_P(StagedReaderTest, RequestsWaitForASlowStaging) {
  std::atomic<bool> go = false;
  StagedReader reader(make_faulty_reader(std::make_shared<FaultyRead>(std::vector<Fault>{}), 1), [&] {
    while (!go) std::this_thread::sleep_for(milliseconds(1));
    return std::make_unique<LateStaging>(2, 1000);
  });
  const auto all = requests(5000);
  reader.submit(all, check(all));
  EXPECT_TRUE(by_result().empty());
  go = true;
  reader.wait();
  EXPECT_EQ(by_result(), (std::map<int64_t, int>{{0, static_cast<int>(all.size())}}));
}

TEST_P(StagedReaderTest, CancelEndsWhatIsQueuedAndTheReaderGoesOn) {
  const auto faulty = std::make_shared<FaultyRead>(std::vector<Fault>{{.kind = Fault::Kind::stall, .n_calls = 2}});
  const auto all = requests(1000);
  const auto reader = make_over(faulty, 3, 1000);
  reader->submit(all, check(all));
  while (faulty->n_stalled() < 2) std::this_thread::sleep_for(milliseconds(1));
  reader->cancel();
  faulty->release();
  reader->wait();
  EXPECT_EQ(results_.size(), all.size());
  EXPECT_EQ(by_result()[0], 2);
  EXPECT_EQ(by_result()[-ECANCELED], static_cast<int>(all.size()) - 2);
  results_.clear();
  reader->submit(all, check(all));
  reader->wait();
  EXPECT_EQ(by_result()[0], static_cast<int>(all.size()));
}

TEST_P(StagedReaderTest, TheDeadlineBoundsTheWaitThoughTheKernelHangs) {
  const auto faulty = std::make_shared<FaultyRead>(std::vector<Fault>{{.kind = Fault::Kind::stall}});
  const auto all = requests(1000);
  const auto reader = make_over(faulty, 3, 1000);
  reader->set_deadline(Reader::Clock::now() + milliseconds(30));
  reader->submit(all, check(all));
  reader->wait();
  EXPECT_EQ(by_result(), (std::map<int64_t, int>{{-ETIMEDOUT, static_cast<int>(all.size())}}));
  faulty->release();  // what was given up writes to its slots now; nobody reads them
}

TEST_P(StagedReaderTest, TheDestructorEndsWhatIsUnderWay) {
  for (int round = 0; round < 20; ++round) {
    results_.clear();
    const auto all = requests(500);
    {
      const auto reader = make({}, 3, 1000);
      reader->submit(all, check(all));
      if (round % 2 == 1) std::this_thread::yield();
    }
    EXPECT_EQ(results_.size(), all.size());
  }
}

TEST_P(StagedReaderTest, ACallbackMaySubmit) {
  const auto all = requests(1000);
  const auto reader = make({}, 2, 1000);
  const auto last = check(all);
  reader->submit({&all[0], 1}, [&](const ReadCompletion&) { reader->submit(all, last); });
  reader->wait();
  EXPECT_EQ(by_result()[0], static_cast<int>(all.size()));
}

INSTANTIATE_TEST_SUITE_P(Readers, StagedReaderTest, testing::Values("pread", "io_uring"),
                         [](const auto& param) { return std::string(param.param); });

}  // namespace
}  // namespace firstlight

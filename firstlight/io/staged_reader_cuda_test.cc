// SPDX-License-Identifier: Apache-2.0
// Files into HBM through the pinned ring.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <random>

#include "firstlight/base/str.h"
#include "firstlight/device/buffer.h"
#include "firstlight/device/copy.h"
#include "firstlight/device/gpus.h"
#include "firstlight/io/fault_read.h"
#include "firstlight/io/staged_reader.h"

namespace firstlight {
namespace {

class CudaStagedReader : public testing::Test {
 protected:
  void SetUp() override {
    if (gpus().names.empty()) GTEST_SKIP() << "no GPU: " << gpus().why_none;
    path_ = fs::path(testing::TempDir()) / str("staged_reader_cuda_test.", ::getpid());
    bytes_.resize(kSize);
    std::mt19937_64 random(5);
    for (size_t i = 0; i + 8 <= kSize; i += 8) {
      const uint64_t word = random();
      std::memcpy(bytes_.data() + i, &word, 8);
    }
    std::ofstream(path_, std::ios::binary).write(reinterpret_cast<const char*>(bytes_.data()), kSize);
    file_ = File::open(path_);
    memory_ = Buffer(gpu_, kSize);
  }
  void TearDown() override { fs::remove(path_); }

  /// Reads the file in requests of `each` bytes; the number of results that were no success.
  int read(StagedReader& reader, uint64_t each) {
    std::vector<ReadRequest> requests;
    for (uint64_t at = 0; at < kSize; at += each) {
      requests.push_back({requests.size(), file_, at, std::min<uint64_t>(each, kSize - at), memory_.data() + at});
    }
    std::atomic<int> wrong = 0;
    reader.submit(requests, [&](const ReadCompletion& done) {
      if (done.result != static_cast<int64_t>(requests[done.id].size)) ++wrong;
    });
    reader.wait();
    return wrong;
  }
  std::unique_ptr<StagedReader> make(std::vector<Fault> faults, StagingSize size) {
    return std::make_unique<StagedReader>(make_faulty_reader(std::make_shared<FaultyRead>(std::move(faults)), 4),
                                          [this, size] { return make_staging(gpu_, size); });
  }

  static constexpr size_t kSize = (50u << 20) + 4321;
  Device gpu_{Device::Kind::cuda, 0};
  fs::path path_;
  std::vector<std::byte> bytes_;
  std::shared_ptr<const File> file_;
  Buffer memory_;
};

TEST_F(CudaStagedReader, EveryByteIsInDeviceMemoryWhenItsRequestCompletes) {
  for (const StagingSize size : {StagingSize{}, StagingSize{3, 1u << 20}, StagingSize{1, 100'000}}) {
    clear(memory_.data(), gpu_, kSize);
    const auto reader = make({{.kind = Fault::Kind::short_read, .amount = 300'000}}, size);
    EXPECT_EQ(read(*reader, 4u << 20), 0);
    std::vector<std::byte> back(kSize);
    copy(back.data(), {}, memory_.data(), gpu_, kSize);
    EXPECT_EQ(std::memcmp(back.data(), bytes_.data(), kSize), 0) << size.n_slots << " x " << size.slot_bytes;
  }
}

TEST_F(CudaStagedReader, HostMemoryIsFilledByTheReaderBelow) {
  const auto reader = make({}, {});
  std::vector<std::byte> host(10'000);
  const ReadRequest request{0, file_, 77, host.size(), host.data()};
  reader->host_reader().submit({&request, 1}, [](const ReadCompletion&) {});
  reader->host_reader().wait();
  EXPECT_EQ(std::memcmp(host.data(), bytes_.data() + 77, host.size()), 0);
}

TEST_F(CudaStagedReader, ErrorsOfTheFileComeThrough) {
  const auto reader = make({{.kind = Fault::Kind::error, .amount = EIO, .first_call = 5, .n_calls = 2}}, {});
  const int wrong = read(*reader, 4u << 20);  // the two reads that fail may be of one request
  EXPECT_GE(wrong, 1);
  EXPECT_LE(wrong, 2);
}

TEST_F(CudaStagedReader, MayBeDestroyedWhileBytesAreUnderWay) {
  for (int round = 0; round < 10; ++round) {
    const ReadRequest request{0, file_, 0, kSize, memory_.data()};
    std::atomic<int> calls = 0;
    {
      const auto reader = make({}, {4, 1u << 20});
      if (round % 2 == 0) reader->wait_until_ready();
      reader->submit({&request, 1}, [&](const ReadCompletion&) { ++calls; });
    }
    EXPECT_EQ(calls, 1);
  }
}

}  // namespace
}  // namespace firstlight

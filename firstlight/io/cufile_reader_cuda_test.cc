// SPDX-License-Identifier: Apache-2.0
// Files into a GPU's memory by the real libcufile, in whatever mode the machine has.
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <fstream>
#include <iostream>
#include <random>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/device/buffer.h"
#include "firstlight/device/copy.h"
#include "firstlight/io/cufile_reader.h"

namespace firstlight {
namespace {

std::string failure_of(const DeviceReader& reader) {
  try {
    if (reader.failure()) std::rethrow_exception(reader.failure());
  } catch (const Error& e) {
    return e.what();
  }
  return {};
}

TEST(CudaCufileReader, BytesReachTheGpuAndTheWayIsTold) {
  if (gpus().names.empty()) GTEST_SKIP() << "no GPU: " << gpus().why_none;
  const Device gpu{Device::Kind::cuda, 0};
  CufileOptions options;
  options.open = [] { return Cufile::open(true); };
  options.enter_thread = [gpu] { start_device(gpu); };
  options.gpu = [gpu] { return gpu_uuid(gpu); };
  CufileReader reader(options);
  try {
    reader.wait_until_ready();
  } catch (const Error& e) {
    GTEST_SKIP() << e.what();
  }
  constexpr size_t kSize = (100u << 20) + 4321;
  std::vector<std::byte> bytes(kSize), back(kSize);
  std::mt19937_64 random(6);
  for (size_t i = 0; i + 8 <= kSize; i += 8) {
    const uint64_t word = random();
    std::memcpy(bytes.data() + i, &word, 8);
  }
  const fs::path path = fs::path("/var/tmp") / str("cufile_reader_cuda_test.", ::getpid());
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(bytes.data()), kSize);
  const auto file = File::open(path);
  Buffer memory(gpu, kSize);
  // Aligned pieces, and pieces that begin and end anywhere.
  for (const uint64_t each : {uint64_t{8} << 20, uint64_t{3'000'001}}) {
    copy(memory.data(), gpu, std::vector<std::byte>(kSize).data(), {}, kSize);
    std::vector<ReadRequest> requests;
    for (uint64_t at = 0; at < kSize; at += each) {
      requests.push_back({requests.size(), file, at, std::min<uint64_t>(each, kSize - at), memory.data() + at});
    }
    std::atomic<int> wrong = 0;
    reader.submit(requests, [&](const ReadCompletion& done) {
      if (done.result != static_cast<int64_t>(requests[done.id].size)) ++wrong;
    });
    reader.wait();
    if (const std::string why = failure_of(reader); !why.empty()) {
      fs::remove(path);
      if (why.find("/run/udev") != std::string::npos) GTEST_SKIP() << why;
      FAIL() << why;
    }
    EXPECT_EQ(wrong, 0);
    copy(back.data(), {}, memory.data(), gpu, kSize);
    EXPECT_TRUE(bytes == back) << "pieces of " << each;
  }
  fs::remove(path);
  std::cout << reader.why() << "\n";
  EXPECT_NE(reader.why().find("reads"), std::string::npos);
}

}  // namespace
}  // namespace firstlight

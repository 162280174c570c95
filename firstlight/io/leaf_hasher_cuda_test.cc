// SPDX-License-Identifier: Apache-2.0
// The kernel against libxxhash.
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "firstlight/base/hash.h"
#include "firstlight/device/buffer.h"
#include "firstlight/device/copy.h"
#include "firstlight/device/gpus.h"
#include "firstlight/io/leaf_hasher.h"

namespace firstlight {
namespace {

class CudaLeafHasher : public testing::Test {
 protected:
  void SetUp() override {
    if (gpus().names.empty()) GTEST_SKIP() << "no GPU: " << gpus().why_none;
    memory_ = Buffer(gpu_, kBytes);
    bytes_.resize(kBytes);
    std::mt19937_64 random(11);
    for (std::byte& byte : bytes_) byte = static_cast<std::byte>(random());
    copy(memory_.data(), gpu_, bytes_.data(), {}, kBytes);
  }

  void expect_equal(const std::vector<std::pair<uint64_t, uint64_t>>& begin_and_size) {
    std::vector<LeafBytes> leaves;
    for (const auto& [begin, size] : begin_and_size) leaves.push_back({memory_.data() + begin, size});
    std::vector<uint64_t> hashes(leaves.size());
    make_leaf_hasher(gpu_)->hash(leaves, hashes);
    for (size_t i = 0; i < leaves.size(); ++i) {
      const auto [begin, size] = begin_and_size[i];
      EXPECT_EQ(hashes[i], xxh3_64({bytes_.data() + begin, size})) << size << " bytes at " << begin;
    }
  }

  static constexpr uint64_t kBytes = 20u << 20, kLeafBytes = 1u << 20;
  Device gpu_{Device::Kind::cuda, 0};
  Buffer memory_;
  std::vector<std::byte> bytes_;
};

TEST_F(CudaLeafHasher, GivesWhatLibxxhashGivesForEveryKindOfLength) {
  std::vector<std::pair<uint64_t, uint64_t>> all;
  for (const uint64_t size : {1u, 16u, 240u, 241u, 1023u, 1024u, 1025u, 1088u, 2047u, 2048u, 2049u, 32768u, 32769u,
                              33793u, 65535u, 65536u, 65537u, (1u << 20) - 1, 1u << 20}) {
    for (const uint64_t begin : {0u, 16u, 4096u, 1234560u}) all.emplace_back(begin, size);
  }
  for (uint64_t size = 1024; size < 1024 + 1024; ++size) all.emplace_back(size * 64, size);
  std::mt19937_64 random(3);
  for (int i = 0; i < 50; ++i) all.emplace_back(random() % 1000 * 4096, 1 + random() % kLeafBytes);
  expect_equal(all);
}

TEST_F(CudaLeafHasher, TakesMoreLeavesThanOneLaunchHolds) {
  std::vector<std::pair<uint64_t, uint64_t>> all;
  for (uint64_t i = 0; i < 300; ++i) all.emplace_back(i % 19 * kLeafBytes, i % 7 == 0 ? 500 + i : kLeafBytes - i);
  expect_equal(all);
}

TEST_F(CudaLeafHasher, SeesOneFlippedBitInDeviceMemory) {
  const std::byte flipped = bytes_[777777] ^ std::byte{4};
  copy(memory_.data() + 777777, gpu_, &flipped, {}, 1);
  const LeafBytes leaf{memory_.data(), kLeafBytes};
  uint64_t found = 0;
  make_leaf_hasher(gpu_)->hash({&leaf, 1}, {&found, 1});
  EXPECT_NE(found, xxh3_64({bytes_.data(), kLeafBytes}));
}

}  // namespace
}  // namespace firstlight

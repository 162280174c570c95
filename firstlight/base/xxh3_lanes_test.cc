// SPDX-License-Identifier: Apache-2.0
// The GPU's way to hash, done by the CPU, against libxxhash.
#include "firstlight/base/xxh3_lanes.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "firstlight/base/hash.h"

namespace firstlight {
namespace {

/// 32 lanes in an order of their own, then the chain.
uint64_t hash_by_lanes(const std::byte* data, uint64_t size) {
  using namespace xxh3;
  uint64_t accumulators[kColumns];
  for (int i = 0; i < kColumns; ++i) accumulators[i] = initial(i);
  const auto add = [&](int lane, Pair sum) {
    accumulators[lane % 4 * 2] += sum.even;
    accumulators[lane % 4 * 2 + 1] += sum.odd;
  };
  for (uint64_t block = 0; block < (size - 1) / kBlockBytes; ++block) {
    for (int i = 0; i < kLanes; ++i) {
      const int lane = (i * 13 + 5) % kLanes;
      const Lane of(lane);
      const std::byte* at = data + block * kBlockBytes + of.offset();
      add(lane, of.sum(load_pair(at), load_pair(at + kBlockBytes / 2)));
    }
    for (int i = 0; i < kColumns; ++i) accumulators[i] = scramble(accumulators[i], scramble_key(i));
  }
  for (int lane = 0; lane < kLanes; ++lane) add(lane, Lane(lane).sum_of_end(data, size));
  return finish(accumulators, size);
}

TEST(Xxh3Lanes, GiveWhatLibxxhashGivesForEveryKindOfLength) {
  std::mt19937_64 random(7);
  std::vector<std::byte> data((1u << 20) + 100);
  for (std::byte& byte : data) byte = static_cast<std::byte>(random());
  std::vector<uint64_t> lengths = {65535, 65536, 65537, (1u << 20) - 1, 1u << 20, (1u << 20) + 1};
  for (uint64_t n = xxh3::kMinBytes; n <= 3 * xxh3::kBlockBytes + 70; ++n) lengths.push_back(n);  // every remainder
  for (int i = 0; i < 20; ++i) lengths.push_back(xxh3::kMinBytes + random() % (1u << 20));
  for (const uint64_t n : lengths) {
    for (const uint64_t offset : {0, 16, 80}) {
      if (offset + n > data.size()) continue;
      ASSERT_EQ(hash_by_lanes(data.data() + offset, n), xxh3_64({data.data() + offset, n})) << n << " at " << offset;
    }
  }
}

TEST(Xxh3Lanes, SeeEveryByte) {
  std::vector<std::byte> data(2500, std::byte{9});
  const uint64_t whole = hash_by_lanes(data.data(), data.size());
  for (std::byte& byte : data) {
    byte ^= std::byte{1};
    ASSERT_NE(hash_by_lanes(data.data(), data.size()), whole) << &byte - data.data();
    byte ^= std::byte{1};
  }
}

}  // namespace
}  // namespace firstlight

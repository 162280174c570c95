// SPDX-License-Identifier: Apache-2.0
// A prefix saved from HBM and read back into it, by the pinned ring and the kernel that hashes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "firstlight/device/gpus.h"
#include "firstlight/kv/prefix_testing.h"

namespace firstlight {
namespace {

class CudaPrefix : public testing::Test {
 protected:
  void SetUp() override {
    if (gpus().names.empty()) GTEST_SKIP() << "no GPU: " << gpus().why_none;
  }
  const Device gpu_{Device::Kind::cuda, 0};
  const Folder folder_;
};

TEST_F(CudaPrefix, ComesBackToTheByteInOtherPages) {
  ReadLane by = lane_into(gpu_);
  for (const KvKind kind : {KvKind::f32, KvKind::bf16, KvKind::tq4, KvKind::k3v2}) {
    for (const int tp : {1, 2}) {
      for (const bool in_order : {true, false}) {
        PrefixInfo info = prefix_info(kind, 11, tp);
        info.n_layers = 40;
        const FakeCache from(info, 1, /*filled=*/true, {12, false, gpu_});
        write_prefix(folder_ / "p", info, from.ranks, from.table);
        FakeCache to(info, 2, /*filled=*/false, {12, in_order, gpu_});
        ASSERT_FALSE(to.content(info) == from.content(info));
        read_prefix(PrefixFile(folder_ / "p"), by, to.ranks, to.table);
        EXPECT_TRUE(to.content(info) == from.content(info)) << to_string(kind) << " tp " << tp;
      }
    }
  }
}

TEST_F(CudaPrefix, IsTheFileThatHostMemoryGives) {
  const PrefixInfo info = prefix_info(KvKind::tq4, 9, 2);
  const FakeCache host(info, 1, true), device(info, 1, true, {12, false, gpu_});
  write_prefix(folder_ / "host", info, host.ranks, host.table);
  write_prefix(folder_ / "device", info, device.ranks, device.table);
  EXPECT_TRUE(bytes_of(folder_ / "host") == bytes_of(folder_ / "device"));
}

TEST_F(CudaPrefix, AFlippedBitIsFoundInDeviceMemory) {
  ReadLane by = lane_into(gpu_);
  const PrefixInfo info = prefix_info(KvKind::bf16, 9);
  const FakeCache from(info, 1, true);
  write_prefix(folder_ / "p", info, from.ranks, from.table);
  const std::string bytes = bytes_of(folder_ / "p");
  for (const size_t at : {size_t{4096}, size_t{4096} + 3 * info.page_bytes() + 77, bytes.size() - 1}) {
    std::string flipped = bytes;
    flipped[at] = static_cast<char>(flipped[at] ^ 4);
    put_bytes(folder_ / "q", flipped);
    FakeCache to(info, 2, false, {12, false, gpu_});
    try {
      read_prefix(PrefixFile(folder_ / "q"), by, to.ranks, to.table);
      ADD_FAILURE() << "byte " << at;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::damaged) << error.what();
    }
  }
}

}  // namespace
}  // namespace firstlight

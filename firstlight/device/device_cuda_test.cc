// SPDX-License-Identifier: Apache-2.0
// Memory of a GPU through the same interface as the CPU's.
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/device/buffer.h"
#include "firstlight/device/copy.h"
#include "firstlight/device/gpus.h"

namespace firstlight {
namespace {

class CudaDevice : public testing::Test {
 protected:
  void SetUp() override {
    if (gpus().names.empty()) GTEST_SKIP() << "no GPU: " << gpus().why_none;
    start_device(gpu_);
  }
  Device gpu_{Device::Kind::cuda, 0};
};

TEST_F(CudaDevice, BuffersAreAlignedAndCarryBytesThereAndBack) {
  for (const uint64_t size : {1ull, 4097ull, 2ull << 20, (9ull << 20) + 13}) {
    for (const Reach reach : {Reach::peers, Reach::own}) {
      const Buffer a(gpu_, size, reach), b(gpu_, size);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(a.data()) % (size >= 2u << 20 ? 2u << 20 : 256u), 0u) << size;
      std::vector<std::byte> sent(size), back(size);
      for (size_t i = 0; i < size; ++i) sent[i] = static_cast<std::byte>(i * 7 + (i >> 9));
      copy(a.data(), gpu_, sent.data(), {}, size);
      copy(b.data(), gpu_, a.data(), gpu_, size);
      copy(back.data(), {}, b.data(), gpu_, size);
      EXPECT_EQ(std::memcmp(sent.data(), back.data(), size), 0) << size;
      clear(b.data(), gpu_, size);
      copy(back.data(), {}, b.data(), gpu_, size);
      EXPECT_EQ(back[size - 1], std::byte{0});
    }
  }
}

TEST_F(CudaDevice, FreeMemoryFallsByWhatIsTakenAndComesBack) {
  const uint64_t before = free_memory(gpu_);
  for (const Reach reach : {Reach::peers, Reach::own}) {
    {
      Buffer big(gpu_, 1u << 30, reach);
      Buffer moved(std::move(big));
      EXPECT_LE(free_memory(gpu_) + (1u << 30), before + (64u << 20));
      moved = Buffer(gpu_, 4096);
      EXPECT_GE(free_memory(gpu_) + (64u << 20), before);
    }
    EXPECT_GE(free_memory(gpu_) + (64u << 20), before);
  }
}

TEST_F(CudaDevice, SaysHowMuchItCouldNotGet) {
  for (const uint64_t size : {~uint64_t{0}, uint64_t{1} << 44}) {
    for (const Reach reach : {Reach::peers, Reach::own}) try {
        const Buffer buffer(gpu_, size, reach);
        FAIL() << size << " bytes were given";
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::out_of_memory);
        EXPECT_NE(std::string(error.what()).find(std::to_string(size)), std::string::npos) << error.what();
      }
  }
  EXPECT_GT(free_memory(gpu_), 0u);  // the failure left nothing behind
}

}  // namespace
}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
#include "firstlight/io/staging.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "firstlight/device/buffer.h"

namespace firstlight {

namespace {

class CpuStaging final : public Staging {
 public:
  explicit CpuStaging(StagingSize size)
      : size_(size), memory_({}, size.slot_bytes * static_cast<uint64_t>(size.n_slots)) {}
  int n_slots() const override { return size_.n_slots; }
  uint64_t slot_bytes() const override { return size_.slot_bytes; }
  std::byte* slot(int i) override { return memory_.data() + size_.slot_bytes * static_cast<uint64_t>(i); }
  void start(int i, std::byte* into, uint64_t bytes) override { std::memcpy(into, slot(i), bytes); }
  bool finished(int) override { return true; }

 private:
  StagingSize size_;
  Buffer memory_;
};

}  // namespace

StagingSize staging_size(int n_devices, int n_threads) {
  constexpr uint64_t kMiB = 1u << 20, kUnknown = 64 * kMiB;
  const long l3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
  const uint64_t cache = l3 > 0 ? static_cast<uint64_t>(l3) : kUnknown;
  // What is read has to pass through the cache, too: the rings get half of it.
  const uint64_t share = std::clamp(cache / 2 / static_cast<uint64_t>(std::max(1, n_devices)), 32 * kMiB, 128 * kMiB);
  StagingSize size;
  size.slot_bytes = 2 * kMiB;
  const auto most = static_cast<int>(share / size.slot_bytes);
  size.n_slots = std::clamp(3 * n_threads, 8, most);
  return size;
}

std::unique_ptr<Staging> make_staging(Device device, StagingSize size) {
  if (device.kind == Device::Kind::cuda) return make_cuda_staging(device, size);
  return std::make_unique<CpuStaging>(size);
}

}  // namespace firstlight

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
  uint64_t read_bytes() const override { return size_.read_bytes; }
  std::byte* slot(int i) override { return memory_.data() + size_.slot_bytes * static_cast<uint64_t>(i); }
  void start(int i, std::byte* into, uint64_t bytes) override { std::memcpy(into, slot(i), bytes); }
  bool finished(int) override { return true; }

 private:
  StagingSize size_;
  Buffer memory_;
};

}  // namespace

StagingSize staging_size(int n_devices) {
  constexpr uint64_t kMiB = 1u << 20, kUnknown = 32 * kMiB;
  const long l3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
  const uint64_t cache = l3 > 0 ? static_cast<uint64_t>(l3) : kUnknown;
  StagingSize size;  // what is read has to pass through the cache, too: the rings get at most half of it
  const uint64_t share = cache / 2 / static_cast<uint64_t>(std::max(1, n_devices));
  while (size.slot_bytes > 4 * kMiB && size.slot_bytes * static_cast<uint64_t>(size.n_slots) > share) {
    size.slot_bytes /= 2;
  }
  return size;
}

std::unique_ptr<Staging> make_staging(Device device, StagingSize size) {
  if (device.kind == Device::Kind::cuda) return make_cuda_staging(device, size);
  return std::make_unique<CpuStaging>(size);
}

}  // namespace firstlight

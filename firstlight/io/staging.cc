// SPDX-License-Identifier: Apache-2.0
#include "firstlight/io/staging.h"

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
  void finish(int) override {}

 private:
  StagingSize size_;
  Buffer memory_;
};

}  // namespace

std::unique_ptr<Staging> make_staging(Device device, StagingSize size) {
  if (device.kind == Device::Kind::cuda) return make_cuda_staging(device, size);
  return std::make_unique<CpuStaging>(size);
}

}  // namespace firstlight

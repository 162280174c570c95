// SPDX-License-Identifier: Apache-2.0
#include "firstlight/device/buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/device/gpu_memory.h"

namespace firstlight {

namespace {

constexpr uint64_t kHuge = 2u << 20;

/// What mmap is asked for: buffers of 2 MiB and more take whole huge pages, so that their last page can be one, too.
uint64_t mapped_bytes(uint64_t size) {
  const uint64_t unit = size >= kHuge ? kHuge : 4096;
  return (size + unit - 1) / unit * unit;
}

}  // namespace

Buffer::Buffer(Device device, uint64_t size_bytes, Reach reach) : device_(device), size_(size_bytes), reach_(reach) {
  if (size_ == 0) return;
  if (device.kind == Device::Kind::cuda) {
    data_ = gpu::allocate(device, size_, reach_, owned_);
    return;
  }
  const auto fail = [&](const char* why) {
    throw Error(ErrorKind::out_of_memory,
                str("allocate ", human_bytes(static_cast<double>(size_)), " (", size_, " bytes) on cpu: ", why));
  };
  if (size_ > (uint64_t{1} << 47)) fail("more than an address space holds");
  const uint64_t wanted = mapped_bytes(size_);
  const uint64_t slack = wanted >= kHuge ? kHuge : 0;  // mmap aligns to 4 KiB: map more, give the ends back
  void* raw = mmap(nullptr, wanted + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED) fail(std::strerror(errno));
  auto* begin = static_cast<std::byte*>(raw);
  if (slack != 0) {
    const uint64_t skip = (kHuge - reinterpret_cast<uintptr_t>(begin) % kHuge) % kHuge;
    if (skip != 0) munmap(begin, skip);
    if (slack != skip) munmap(begin + skip + wanted, slack - skip);
    begin += skip;
    madvise(begin, wanted, MADV_HUGEPAGE);  // refused where the kernel has none: then it is slower, not wrong
  }
  data_ = begin;
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  if (device_.kind == Device::Kind::cuda) {
    gpu::release(device_, size_, reach_, owned_);
  } else {
    munmap(data_, mapped_bytes(size_));
  }
}

Buffer::Buffer(Buffer&& other) noexcept
    : device_(other.device_),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      reach_(other.reach_),
      owned_(std::exchange(other.owned_, nullptr)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    Buffer old(std::move(*this));
    device_ = other.device_;
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
    reach_ = other.reach_;
    owned_ = std::exchange(other.owned_, nullptr);
  }
  return *this;
}

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
#include "firstlight/device/stream.h"

#include <utility>

#include "firstlight/device/gpu_memory.h"

namespace firstlight {

Stream::Stream(Device device) : device_(device) {
  if (device.kind == Device::Kind::cuda) handle_ = gpu::make_stream(device);
}

Stream::~Stream() {
  if (handle_ != nullptr) gpu::release_stream(device_, handle_);
}

Stream::Stream(Stream&& other) noexcept
    : device_(std::exchange(other.device_, {})), handle_(std::exchange(other.handle_, nullptr)) {}

Stream& Stream::operator=(Stream&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(handle_, other.handle_);
  return *this;
}

void Stream::wait() const {
  if (handle_ != nullptr) gpu::wait(device_, handle_);
}

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
#include "firstlight/device/copy.h"

#include <cstring>

#include "firstlight/device/gpu_memory.h"

namespace firstlight {

void copy(std::byte* to, Device to_device, const std::byte* from, Device from_device, uint64_t bytes) {
  if (bytes == 0) return;
  if (to_device.kind == Device::Kind::cpu && from_device.kind == Device::Kind::cpu) {
    std::memcpy(to, from, bytes);
  } else {
    gpu::copy(to, to_device, from, from_device, bytes);
  }
}

void clear(std::byte* to, Device device, uint64_t bytes) {
  if (bytes == 0) return;
  if (device.kind == Device::Kind::cpu) {
    std::memset(to, 0, bytes);
  } else {
    gpu::clear(to, device, bytes);
  }
}

}  // namespace firstlight

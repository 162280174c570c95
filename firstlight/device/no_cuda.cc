// SPDX-License-Identifier: Apache-2.0
// In the place of cuda.cc where the build has no CUDA.
#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/device/gpu_memory.h"
#include "firstlight/device/gpus.h"

namespace firstlight {

namespace {

[[noreturn]] void refuse(Device device) {
  throw Error(ErrorKind::unsupported, str(to_string(device), ": this build has no CUDA"));
}

}  // namespace

const Gpus& gpus() {
  static const Gpus none{{}, "this build has no CUDA", false};
  return none;
}

GpuUuid gpu_uuid(Device) noexcept { return {}; }

namespace gpu {

std::byte* allocate(Device device, uint64_t, Reach&, void*&) { refuse(device); }
void release(Device, uint64_t, Reach, void*) noexcept {}
uint64_t free_memory(Device device) { refuse(device); }
void copy(std::byte*, Device to_device, const std::byte*, Device from_device, uint64_t) {
  refuse(to_device.kind == Device::Kind::cuda ? to_device : from_device);
}
void clear(std::byte*, Device device, uint64_t) { refuse(device); }
void start(Device device) { refuse(device); }
void* make_stream(Device device) { refuse(device); }
void release_stream(Device, void*) noexcept {}
void wait(Device device, void*) { refuse(device); }

}  // namespace gpu
}  // namespace firstlight

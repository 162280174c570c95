// SPDX-License-Identifier: Apache-2.0
// A device's queue of work, as those see it who may not see CUDA's headers.
#pragma once
#include "firstlight/device/device.h"

namespace firstlight {

/// Owns a stream of a GPU; on the CPU, where calls return when done, it is nothing. Move-only. Whoever queues on the
/// same stream sees what was queued before as done.
class Stream {
 public:
  Stream() = default;
  /// Throws Error{device}, {not_found} or {unsupported} as Buffer does.
  explicit Stream(Device device);
  ~Stream();
  Stream(Stream&& other) noexcept;
  Stream& operator=(Stream&& other) noexcept;

  Device device() const noexcept { return device_; }
  /// A cudaStream_t; null on the CPU and of a stream made without a device.
  void* handle() const noexcept { return handle_; }
  /// Blocks until all that was queued is done. Throws Error{device} if any of it failed.
  void wait() const;

 private:
  Device device_;
  void* handle_ = nullptr;
};

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// Pinned host memory and the way from it to a device: what StagedReader needs of one.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

#include "firstlight/device/device.h"

namespace firstlight {

/// The whole ring should fit in the last-level cache beside the other GPUs' (two GPUs: 94 GB/s with 64 MiB each, 56
/// with 256), a slot be as long as a request.
struct StagingSize {
  int n_slots = 16;
  uint64_t slot_bytes = 4u << 20;
};

/// Slots of host memory, each copied to the device on request. start() may be called by any thread, also while others
/// are in finish(); a slot is used by one caller at a time.
class Staging {
 public:
  virtual ~Staging() = default;  ///< waits for copies that are under way
  virtual int n_slots() const = 0;
  virtual uint64_t slot_bytes() const = 0;
  virtual std::byte* slot(int i) = 0;
  /// Begins the copy of the slot's first `bytes` bytes to `into` on the device. Throws Error{device}.
  virtual void start(int i, std::byte* into, uint64_t bytes) = 0;
  /// Blocks until the copy that was started from this slot is done. Throws Error{device}.
  virtual void finish(int i) = 0;
};

/// For a GPU: huge pages, pinned, one copy stream. For the CPU: plain memory, for tests. Creates the device's context.
/// Throws Error{out_of_memory, device, not_found}; Error{unsupported} for a GPU in a build without CUDA.
std::unique_ptr<Staging> make_staging(Device device, StagingSize size = {});
std::unique_ptr<Staging> make_cuda_staging(Device device, StagingSize size);

}  // namespace firstlight

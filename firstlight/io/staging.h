// SPDX-License-Identifier: Apache-2.0
// Pinned host memory and the way from it to a device: what StagedReader needs of one.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

#include "firstlight/device/device.h"

namespace firstlight {

/// Slots are read by CPU threads and copied by a device at the same time, so there must be several a thread.
struct StagingSize {
  int n_slots = 16;
  uint64_t slot_bytes = 4u << 20;
};

/// For one of n_devices that are filled at once by n_threads each: a share of the last-level cache, as bytes that have
/// left it go through DRAM twice (two GPUs: 94 GB/s with 64 MiB each, 56 with 256).
StagingSize staging_size(int n_devices, int n_threads);

/// Slots of host memory, which can be written to at once, and from where they are prepared be copied to the device on
/// request. All may be called by several threads; a slot is used by one caller at a time.
class Staging {
 public:
  virtual ~Staging() = default;  ///< waits for copies that are under way
  virtual int n_slots() const = 0;
  virtual uint64_t slot_bytes() const = 0;
  virtual std::byte* slot(int i) = 0;
  /// To be called for each slot in turn before its first start(), by one thread: pins it. The first call makes the
  /// device's context. Throws Error{out_of_memory, device, not_found}.
  virtual void prepare(int /*i*/) {}
  /// Begins the copy of the slot's first `bytes` bytes to `into` on the device. Throws Error{device}.
  virtual void start(int i, std::byte* into, uint64_t bytes) = 0;
  /// Whether the copy that was started from this slot is done; asked again until it is. Throws Error{device}.
  virtual bool finished(int i) = 0;
};

/// For a GPU: huge pages, pinned in prepare(), two copy streams. For the CPU: plain memory, for tests. Makes no context
/// yet. Throws Error{out_of_memory}; Error{unsupported} for a GPU in a build without CUDA.
std::unique_ptr<Staging> make_staging(Device device, StagingSize size = {});
std::unique_ptr<Staging> make_cuda_staging(Device device, StagingSize size);

}  // namespace firstlight

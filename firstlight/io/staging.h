// SPDX-License-Identifier: Apache-2.0
// Pinned host memory and the way from it to a device: what StagedReader needs of one.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

#include "firstlight/device/device.h"

namespace firstlight {

/// A slot is copied by one call, and between two copies a GPU's engine rests 3 µs, whatever their streams (H200: 51.0
/// GB/s with 2 MiB, 53.1 with 4, 54.2 with 8, 55.1 with 64). It is filled by several reads, of many threads at once: so
/// few slots do, and they stay in the cache.
struct StagingSize {
  int n_slots = 4;
  uint64_t slot_bytes = 16u << 20;
  uint64_t read_bytes = 1u << 19;
};

/// For one of n_devices that are filled at once: a share of the last-level cache, as bytes that have left it go through
/// DRAM twice (two GPUs with rings of 64 MiB: 94 GB/s, with 256: 56).
StagingSize staging_size(int n_devices);

/// Slots of host memory, which can be written to at once, and from where they are prepared be copied to the device, or
/// filled from there, on request. All may be called by several threads; a slot is used by one caller at a time.
class Staging {
 public:
  virtual ~Staging() = default;  ///< waits for copies that are under way
  virtual int n_slots() const = 0;
  virtual uint64_t slot_bytes() const = 0;
  virtual uint64_t read_bytes() const = 0;  ///< the most that one read should take
  virtual std::byte* slot(int i) = 0;
  /// To be called for each slot in turn before its first start() or fetch(), by one thread: pins it, if the call for
  /// one before has not. The first call makes the device's context. Throws Error{out_of_memory, device, not_found}.
  virtual void prepare(int /*i*/) {}
  /// Begins the copy of the slot's first `bytes` bytes to `into` on the device. Throws Error{device}.
  virtual void start(int i, std::byte* into, uint64_t bytes) = 0;
  /// Begins the copy of `bytes` bytes at `from` on the device into the slot, `at` bytes behind its beginning; several
  /// may be under way to different places. Throws Error{device}.
  virtual void fetch(int i, uint64_t at, const std::byte* from, uint64_t bytes) = 0;
  /// Whether all copies that were begun from or into this slot are done; asked again until they are. Throws
  /// Error{device}.
  virtual bool finished(int i) = 0;
};

/// For a GPU: huge pages, pinned in prepare(), one copy stream. For the CPU: plain memory, for tests. Makes no context
/// yet. Throws Error{out_of_memory}; Error{unsupported} for a GPU in a build without CUDA.
std::unique_ptr<Staging> make_staging(Device device, StagingSize size = {});
std::unique_ptr<Staging> make_cuda_staging(Device device, StagingSize size);

}  // namespace firstlight

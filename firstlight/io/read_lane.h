// SPDX-License-Identifier: Apache-2.0
// What brings bytes from storage into the memory of one device and hashes them there. A load has one for each of its
// devices, and lends it to who has more to read.
#pragma once
#include <memory>

#include "firstlight/device/device.h"
#include "firstlight/io/device_reader.h"
#include "firstlight/io/leaf_checks.h"

namespace firstlight {

// 269 MB from the page cache, two threads: 4 MiB 30.5 ms, 2 MiB 30.7 (fewer, longer requests win the tie), 8 MiB 31–35,
// 1 MiB 36.6 (two threads fault the same huge page), 16 MiB 32–34. Hashing alone: 5.1 ms of CPU at 2 MiB, 6 at 4, 9 at
// 16: the cache.
inline constexpr uint64_t kRequestBytes = 4u << 20;         ///< data is asked for in pieces of this size …
inline constexpr uint64_t kStagedRequestBytes = 16u << 20;  ///< … or this, on the way to a GPU: a slot of the ring

/// Reader threads and, on a device that is not the CPU, a pinned ring and a hasher.
struct ReadLane {
  Device device;
  std::unique_ptr<LeafChecks> checks;  ///< only where leaves are hashed by a device
  std::unique_ptr<Reader> reader;      ///< destroyed before `checks`, which its callbacks use
  DeviceReader* on_device = nullptr;   ///< `reader`, if its requests end on a device

  /// For bytes that end in host memory.
  Reader& host_reader() { return on_device != nullptr ? on_device->host_reader() : *reader; }
  uint64_t request_bytes() const { return on_device != nullptr ? kStagedRequestBytes : kRequestBytes; }
};

}  // namespace firstlight

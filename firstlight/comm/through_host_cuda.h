// SPDX-License-Identifier: Apache-2.0
// Collectives of ranks on GPUs that do not see each other's memory: fetched, exchanged by the ranks' ends on the host,
// and sent back. Every call waits for the stream.
#pragma once
#include <cstddef>
#include <span>

#include "firstlight/comm/comm.h"
#include "firstlight/device/device.h"
#include "firstlight/device/stream.h"

namespace firstlight {

/// Host memory that every GPU reads and writes where it is; grows, never shrinks.
class Pinned {
 public:
  Pinned() = default;
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  ~Pinned();
  /// Waits for `stream` before it moves. Throws Error{out_of_memory, device}.
  void reserve(size_t bytes, const Stream& stream);
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

/// Of one rank.
class ThroughHost {
 public:
  /// `host`: the rank's end on the CPU; to be there at every call.
  void all_reduce_sum(Comm& host, Device device, std::span<float> data, const Stream& stream);

 private:
  Pinned mine_;
};

}  // namespace firstlight

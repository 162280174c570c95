// SPDX-License-Identifier: Apache-2.0
// XXH3-64 of leaves where they lie: in HBM by a kernel, so that bytes the CPU never saw are checked, too.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "firstlight/device/device.h"

namespace firstlight {

/// The bytes of one leaf, on the hasher's device, at a multiple of 16.
struct LeafBytes {
  const std::byte* data = nullptr;
  uint64_t size = 0;  ///< at least 1
};

/// One thread at a time.
class LeafHasher {
 public:
  virtual ~LeafHasher() = default;
  /// hashes[i] = XXH3-64 of leaves[i]; all of them run at once; blocks until they are there. Throws Error{device}.
  virtual void hash(std::span<const LeafBytes> leaves, std::span<uint64_t> hashes) = 0;
};

std::unique_ptr<LeafHasher> make_leaf_hasher(Device device);
/// The GPU's. Throws Error{unsupported} in a build without CUDA.
std::unique_ptr<LeafHasher> make_cuda_leaf_hasher(Device device);

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
#include "firstlight/io/leaf_hasher.h"

#include "firstlight/base/hash.h"

namespace firstlight {

namespace {

class CpuLeafHasher final : public LeafHasher {
 public:
  void hash(std::span<const LeafBytes> leaves, std::span<uint64_t> hashes) override {
    for (size_t i = 0; i < leaves.size(); ++i) hashes[i] = xxh3_64({leaves[i].data, leaves[i].size});
  }
};

}  // namespace

std::unique_ptr<LeafHasher> make_leaf_hasher(Device device) {
  if (device.kind == Device::Kind::cuda) return make_cuda_leaf_hasher(device);
  return std::make_unique<CpuLeafHasher>();
}

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// Which leaves each layer waits for: a gate opens when the last leaf that touches one of its tensors has been checked.
#pragma once
#include <atomic>
#include <cstdint>
#include <vector>

#include "firstlight/ckpt/load_files.h"

namespace firstlight {

/// Of one rank. leaf_done() may be called by several threads, once for each leaf.
class LeafGates {
 public:
  /// The last gate is held until release_last(). Leaves of a tail belong to every gate: small tensors of all layers
  /// stand there.
  LeafGates(const RankFiles& files, Gates& gates);
  /// Leaf `leaf`, counted over all parts, is in the arena and right.
  void leaf_done(uint64_t leaf);
  void release_last();

 private:
  void count_down(int gate);

  Gates& gates_;
  std::vector<std::atomic<uint64_t>> left_;  // of each gate: leaves still to come
  std::vector<std::vector<int>> gates_of_;   // of each leaf
};

uint64_t leaves_of(const ManifestPart& part);

}  // namespace firstlight

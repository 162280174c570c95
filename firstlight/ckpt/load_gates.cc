// SPDX-License-Identifier: Apache-2.0
#include "firstlight/ckpt/load_gates.h"

#include <algorithm>
#include <numeric>

namespace firstlight {

uint64_t leaves_of(const ManifestPart& part) { return (part.data_bytes + kLeafBytes - 1) / kLeafBytes; }

LeafGates::LeafGates(const RankFiles& files, Gates& gates) : gates_(gates), left_(static_cast<size_t>(gates.size())) {
  std::vector<int> every(left_.size());
  std::iota(every.begin(), every.end(), 0);
  for (const ManifestPart& part : files.manifest->parts) {
    gates_of_.resize(part.first_leaf + leaves_of(part));
    if (part.tail_begin == part.data_bytes) continue;
    for (uint64_t leaf = part.tail_begin / kLeafBytes; leaf < leaves_of(part); ++leaf) {
      gates_of_[part.first_leaf + leaf] = every;
    }
  }
  for (const ArenaTensor& tensor : files.layout.tensors) {
    const ManifestPart& part = files.manifest->parts[tensor.part];
    for (uint64_t leaf = tensor.begin / kLeafBytes; leaf * kLeafBytes < tensor.end; ++leaf) {
      std::vector<int>& of = gates_of_[part.first_leaf + leaf];
      if (std::find(of.begin(), of.end(), tensor.gate) == of.end()) of.push_back(tensor.gate);
    }
  }
  for (const std::vector<int>& of : gates_of_) {
    for (const int gate : of) left_[static_cast<size_t>(gate)].fetch_add(1, std::memory_order_relaxed);
  }
  left_.back().fetch_add(1, std::memory_order_relaxed);
  for (size_t gate = 0; gate + 1 < left_.size(); ++gate) {
    if (left_[gate].load(std::memory_order_relaxed) == 0) gates_.open(static_cast<int>(gate));
  }
}

void LeafGates::leaf_done(uint64_t leaf) {
  for (const int gate : gates_of_[leaf]) count_down(gate);
}

void LeafGates::release_last() { count_down(static_cast<int>(left_.size()) - 1); }

void LeafGates::count_down(int gate) {
  // acq_rel: whoever opens the gate has seen what every other thread wrote for it.
  if (left_[static_cast<size_t>(gate)].fetch_sub(1, std::memory_order_acq_rel) == 1) gates_.open(gate);
}

}  // namespace firstlight

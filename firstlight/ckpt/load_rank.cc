// SPDX-License-Identifier: Apache-2.0
#include "firstlight/ckpt/load_rank.h"

#include <algorithm>

#include "firstlight/ckpt/load_leaf.h"

namespace firstlight {

std::byte* LoadRank::address(const LoadJob& job) const {
  return (job.kind == LoadJob::Kind::padding ? paddings.data() : base) + job.at;
}

std::vector<LeafBytes> LoadRank::bytes_to_hash(const LoadJob& job, Verify verify) const {
  std::vector<LeafBytes> bytes;
  for (const uint64_t leaf : leaves_to_check(job, verify)) {
    const uint64_t at = leaf * kLeafBytes - job.begin;
    bytes.push_back({address(job) + at, std::min(kLeafBytes, job.size() - at)});
  }
  return bytes;
}

void LoadRank::check_leaves(const LoadJob& job, const RankFiles& files, Verify verify,
                            std::span<const uint64_t> hashes) {
  const std::vector<uint64_t> leaves = leaves_to_check(job, verify);
  for (size_t i = 0; i < leaves.size(); ++i) {
    if (hashes[i] == files.expected_leaf(job.part, leaves[i])) continue;
    std::rethrow_exception(leaf_failure(files, job.part, leaves[i], hashes[i]));
  }
  leaves_checked.fetch_add(hashes.size(), std::memory_order_relaxed);
}

RankReport LoadRank::report(const RankFiles& files) const {
  return {files.rank, lane->device, files.manifest->total_bytes(), end_s - lane->ready_s, leaves_checked.load()};
}

}  // namespace firstlight

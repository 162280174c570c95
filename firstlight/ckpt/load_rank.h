// SPDX-License-Identifier: Apache-2.0
// One rank of a load that is under way: where its bytes go, what of them is checked, what waits for them.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "firstlight/ckpt/load_gates.h"
#include "firstlight/ckpt/load_jobs.h"
#include "firstlight/ckpt/load_lane.h"
#include "firstlight/io/leaf_hasher.h"

namespace firstlight {

struct LoadRank {
  LoadLane* lane = nullptr;
  Buffer arena;                  ///< until there are weights
  std::byte* base = nullptr;     ///< the arena's, as soon as there is one
  Buffer paddings;               ///< where they are read to
  std::unique_ptr<Gates> ready;  ///< the weights', until there are weights
  std::unique_ptr<LeafGates> gates;
  std::atomic<uint64_t> jobs_left{0};
  std::atomic<uint64_t> leaves_checked{0};
  double end_s = 0;  ///< since exec; written by the thread that does the last job

  /// Where the job's bytes are read to.
  std::byte* address(const LoadJob& job) const;
  std::vector<LeafBytes> bytes_to_hash(const LoadJob& job, Verify verify) const;
  /// `hashes` are those of bytes_to_hash(), in order. Throws Error{damaged} naming the first leaf that is another.
  void check_leaves(const LoadJob& job, const RankFiles& files, Verify verify, std::span<const uint64_t> hashes);
  RankReport report(const RankFiles& files) const;
};

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// The pages of a prefix file on their way into a cache, as weights come: the same lanes, in long reads to their places,
// every byte hashed where it is used.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <stop_token>

#include "firstlight/io/read_lane.h"
#include "firstlight/kv/page_pool.h"
#include "firstlight/kv/prefix_file.h"

namespace firstlight {

/// Made and destroyed by one thread.
class PrefixRead {
 public:
  struct Report {
    uint64_t bytes = 0;             ///< of pages
    double begin_s = 0, end_s = 0;  ///< since exec: asked for, and the last of them checked
  };

  /// Queues all pages of `file` behind what waits in `lanes`, of each rank [tp] (LoadOptions::lanes(): those on a
  /// device hash there). They go to the pages of `table`, which has room for them and holds the exact ones
  /// (PageTable::hold_exact_before()). Pages that lie side by side in the pool are read together. Never blocks on I/O.
  /// Lanes and the ranks' memory outlive this object; where a lane has a
  /// deadline, the memory outlives the lane.
  PrefixRead(const PrefixFile& file, std::span<ReadLane* const> lanes, std::span<const RankPages> ranks,
             const PageTable& table);
  /// Unless all has come, cancels what waits in the lanes (a load's reads too), and waits for what runs.
  ~PrefixRead();
  PrefixRead(const PrefixRead&) = delete;
  PrefixRead& operator=(const PrefixRead&) = delete;

  /// Blocks until all pages are there and checked. Throws Error{damaged} naming file, range, rank and tokens if a hash
  /// is another one, Error{io, device}, Interrupted if `stop` is asked meanwhile, which cancels the lanes: the table's
  /// pages then hold nothing of use. Once.
  Report wait(const std::stop_token& stop = {});

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace firstlight

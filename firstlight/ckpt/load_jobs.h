// SPDX-License-Identifier: Apache-2.0
// What a load reads, cut into requests, in the order in which they are wanted.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "firstlight/ckpt/load_files.h"
#include "firstlight/device/buffer.h"
#include "firstlight/io/stripe_layout.h"

namespace firstlight {

/// One request. `body` and `tail` are bytes [begin, end) of a part's data section, begin a leaf's first; `padding` is
/// of the file, the spaces between header and data.
struct LoadJob {
  enum class Kind { body, tail, padding };
  size_t rank = 0, part = 0;
  uint64_t begin = 0, end = 0;
  Kind kind = Kind::body;
  uint64_t at = 0;  ///< where it is read to: bodies to their places in the arena, tails behind all that the arena holds
                    ///< of weights; paddings in host memory, counted from the rank's first

  uint64_t size() const { return end - begin; }
  uint64_t file_begin() const { return begin + (kind == Kind::padding ? 0 : kDataBegin); }
};

/// Where the parts lie on a parallel file system; no layouts: not known, or nothing to gain.
struct LoadSpread {
  StripeLayouts layouts;  ///< by absolute path
  int in_flight = 32;     ///< requests under way, over all ranks
};

/// What the file system of the ranks' parts tells; `said` is for the report, describe(FoundLayouts). What is no Lustre
/// tells nothing, in 0.1 ms.
LoadSpread find_spread(std::span<const RankFiles> ranks, const LoadOptions& options, std::string& said);

/// Tails first; then one request of each rank in turn, so that all ranks come to the same layer at the same time; what
/// no tensor needs (paddings, if all is to be verified) at the end. With layouts a rank's requests come in the order of
/// spread_over_targets(), up to kMostAhead bytes early or late.
std::vector<LoadJob> plan_load_jobs(std::span<const RankFiles> ranks, uint64_t request_bytes, bool with_padding,
                                    const LoadSpread& spread = {});
inline constexpr uint64_t kMostAhead = 512u << 20;  ///< a stripe of 16 MiB on each of 32 targets; 40 ms at 12.5 GB/s

/// Which leaves of a body or tail are to be checked, counted from the beginning of the part.
std::vector<uint64_t> leaves_to_check(const LoadJob& job, Verify verify);

/// "full", "sample: every 16th leaf, 1004 of 16062", "off".
std::string describe(Verify verify, uint64_t n_checked, uint64_t n_leaves);

/// What stands before the tail goes on with its region, the tail's tensors to their slots.
void place_tail(const LoadJob& job, const RankFiles& files, Device device, std::byte* arena);

/// Nothing depends on the padding, but a file with a wrong byte anywhere is not what was written. Error{damaged}.
void check_padding(const LoadJob& job, const File& file, const std::byte* bytes);

/// Of the paddings of a rank.
uint64_t padding_bytes(const ManifestRank& rank);
/// What the tails of a rank take behind its weights.
uint64_t tail_staging_bytes(const ManifestRank& rank);

inline uint64_t leaves_in(uint64_t bytes) { return (bytes + kLeafBytes - 1) / kLeafBytes; }

}  // namespace firstlight

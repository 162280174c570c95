// SPDX-License-Identifier: Apache-2.0
// What hardware allows a load to take, from its rates alone.
#pragma once
#include <cstdint>
#include <span>
#include <string_view>

namespace firstlight::cli {

/// Rates in bytes per second; 0: not known, so no bound.
struct LoadHardware {
  double storage = 0;  ///< all ranks together
  int n_links = 0;     ///< host to GPU, one a rank
  double link = 0;     ///< each
};

/// "8x55": eight links of 55 GB/s each. Throws Error{bad_input} naming the option.
void parse_links(std::string_view text, LoadHardware& hardware);

struct LoadFloor {
  double storage_s = 0;   ///< all bytes at the storage's rate
  double links_s = 0;     ///< the largest rank at a link's rate
  double seconds = 0;     ///< the larger: nothing is faster
  double expected_s = 0;  ///< exec → all ranks loaded, see expected_load_seconds()
};

/// A GPU's context, made by the driver one after another (two H200: 0.35 to 0.37 s for both).
constexpr double kContextSeconds = 0.18;

/// Of its floor, what a load into so many GPUs reaches: one H200 .95, two .83; more were not measured and are taken as
/// two.
constexpr double share_reached(size_t n_ranks) { return n_ranks < 2 ? 0.95 : 0.83; }

/// Throws Error{bad_input} if there are fewer links than ranks.
LoadFloor floor_of(std::span<const uint64_t> rank_bytes, const LoadHardware& hardware);

/// Rank r begins when context r stands, (r + 1) * kContextSeconds behind exec; those that have begun share the storage
/// evenly, none faster than its link; all rates times share_reached().
double expected_load_seconds(std::span<const uint64_t> rank_bytes, const LoadHardware& hardware);

}  // namespace firstlight::cli

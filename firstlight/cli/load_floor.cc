// SPDX-License-Identifier: Apache-2.0
#include "firstlight/cli/load_floor.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"

namespace firstlight::cli {

void parse_links(std::string_view text, LoadHardware& hardware) {
  const size_t x = text.find('x');
  const auto whole = [&](std::string_view part, auto& out) {
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), out);
    return error == std::errc{} && end == part.data() + part.size();
  };
  double gb_per_s = 0;
  if (x == std::string_view::npos || !whole(text.substr(0, x), hardware.n_links) ||
      !whole(text.substr(x + 1), gb_per_s) || hardware.n_links < 1 || !std::isfinite(gb_per_s) || gb_per_s <= 0) {
    throw Error(ErrorKind::bad_input, str("--links '", text, "': expected their number and the GB/s of each, as 8x55"));
  }
  hardware.link = gb_per_s * 1e9;
}

LoadFloor floor_of(std::span<const uint64_t> rank_bytes, const LoadHardware& hardware) {
  if (hardware.n_links > 0 && static_cast<size_t>(hardware.n_links) < rank_bytes.size()) {
    throw Error(ErrorKind::bad_input, str("--links names ", hardware.n_links, " for ", rank_bytes.size(), " ranks"));
  }
  LoadFloor floor;
  if (hardware.storage > 0) {
    floor.storage_s =
        static_cast<double>(std::accumulate(rank_bytes.begin(), rank_bytes.end(), uint64_t{0})) / hardware.storage;
  }
  if (hardware.link > 0) {
    floor.links_s = static_cast<double>(*std::max_element(rank_bytes.begin(), rank_bytes.end())) / hardware.link;
  }
  floor.seconds = std::max(floor.storage_s, floor.links_s);
  floor.expected_s = expected_load_seconds(rank_bytes, hardware);
  return floor;
}

double expected_load_seconds(std::span<const uint64_t> rank_bytes, const LoadHardware& hardware) {
  if (hardware.storage <= 0 && hardware.link <= 0) return 0;
  std::vector<double> left(rank_bytes.begin(), rank_bytes.end());
  size_t n_begun = 0;  // contexts come in the order of the ranks
  double now = 0;
  for (;;) {
    const auto active = [&](size_t rank) { return rank < n_begun && left[rank] > 0; };
    size_t n_active = 0;
    for (size_t rank = 0; rank < n_begun; ++rank) n_active += active(rank) ? 1 : 0;
    if (n_active == 0 && n_begun == left.size()) return now;
    // Until the next context stands or a rank is done.
    double step = n_begun < left.size() ? kContextSeconds * static_cast<double>(n_begun + 1) - now
                                        : std::numeric_limits<double>::infinity();
    double rate = hardware.storage > 0 && n_active > 0 ? hardware.storage / static_cast<double>(n_active)
                                                       : std::numeric_limits<double>::infinity();
    if (hardware.link > 0) rate = std::min(rate, hardware.link);
    rate *= share_reached(left.size());
    for (size_t rank = 0; rank < n_begun; ++rank) {
      if (active(rank)) step = std::min(step, left[rank] / rate);
    }
    for (size_t rank = 0; rank < n_begun; ++rank) {
      if (active(rank)) left[rank] = left[rank] / rate <= step ? 0 : left[rank] - step * rate;
    }
    now += step;
    if (n_begun < left.size() && now >= kContextSeconds * static_cast<double>(n_begun + 1)) ++n_begun;
  }
}

}  // namespace firstlight::cli

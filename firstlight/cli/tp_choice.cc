// SPDX-License-Identifier: Apache-2.0
#include "firstlight/cli/tp_choice.h"

#include <algorithm>
#include <charconv>
#include <string_view>

namespace firstlight::cli {

namespace fs = std::filesystem;

std::vector<int> stored_tps(const fs::path& model) {
  std::vector<int> tps;
  std::error_code error;
  for (fs::directory_iterator at(model, error), none; !error && at != none; at.increment(error)) {
    const fs::path file = at->path().filename();
    std::string_view name = file.native();
    if (!name.starts_with("tp")) continue;
    name.remove_prefix(2);
    int tp = 0;
    const auto [end, wrong] = std::from_chars(name.data(), name.data() + name.size(), tp);
    if (wrong == std::errc() && end == name.data() + name.size() && tp > 0) tps.push_back(tp);
  }
  std::sort(tps.begin(), tps.end());
  return tps;
}

int tp_for(const std::vector<int>& tps, int n_gpus) {
  if (tps.empty()) return 1;
  const auto above = std::upper_bound(tps.begin(), tps.end(), n_gpus);
  return above == tps.begin() ? tps.front() : *(above - 1);
}

}  // namespace firstlight::cli

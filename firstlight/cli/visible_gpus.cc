// SPDX-License-Identifier: Apache-2.0
#include "firstlight/cli/visible_gpus.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>

#include "firstlight/base/str.h"

namespace firstlight::cli {

namespace {

namespace fs = std::filesystem;

/// The N of "prefixN", if that is what `name` is.
std::optional<int> number_behind(std::string_view prefix, std::string_view name) {
  if (!name.starts_with(prefix)) return std::nullopt;
  const std::string_view digits = name.substr(prefix.size());
  int number = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  if (error != std::errc() || end != digits.data() + digits.size() || number < 0) return std::nullopt;
  return number;
}

std::vector<int> numbers_in(const fs::path& directory, std::string_view prefix) {
  std::vector<int> numbers;
  std::error_code error;
  for (fs::directory_iterator at(directory, error), end; !error && at != end; at.increment(error)) {
    if (const auto number = number_behind(prefix, at->path().filename().native())) numbers.push_back(*number);
  }
  std::sort(numbers.begin(), numbers.end());
  return numbers;
}

}  // namespace

std::vector<std::string> visible_gpus(const std::optional<std::string>& variable, const fs::path& devices) {
  std::vector<std::string> gpus;
  if (!variable) {
    for (size_t i = 0; i < numbers_in(devices, "nvidia").size(); ++i) gpus.push_back(str(i));
    return gpus;
  }
  std::string_view rest = *variable;
  while (!rest.empty()) {
    const size_t comma = std::min(rest.find(','), rest.size());
    const std::string_view entry = rest.substr(0, comma);
    if (entry.empty() || entry.starts_with('-')) break;
    gpus.emplace_back(entry);
    rest.remove_prefix(std::min(comma + 1, rest.size()));
  }
  return gpus;
}

std::vector<int> stored_tps(const fs::path& model) {
  std::vector<int> tps = numbers_in(model, "tp");
  std::erase(tps, 0);
  return tps;
}

int tp_for(const std::vector<int>& tps, int n_gpus) {
  if (tps.empty()) return 1;
  const auto above = std::upper_bound(tps.begin(), tps.end(), n_gpus);
  return above == tps.begin() ? tps.front() : *(above - 1);
}

int gpus_needed(std::string_view device, int tp) {
  if (device == "cpu") return 0;
  const auto index = number_behind("cuda:", device);
  return index ? *index + 1 : tp;
}

void show_gpus(const std::vector<std::string>& visible, int n) {
  if (n < 1 || n >= static_cast<int>(visible.size())) return;
  std::string shown;
  for (size_t i = 0; i < static_cast<size_t>(n); ++i) shown += str(i == 0 ? "" : ",", visible[i]);
  ::setenv("CUDA_VISIBLE_DEVICES", shown.c_str(), 1);
}

}  // namespace firstlight::cli

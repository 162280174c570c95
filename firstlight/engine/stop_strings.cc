// SPDX-License-Identifier: Apache-2.0
#include "firstlight/engine/stop_strings.h"

#include <algorithm>
#include <utility>

namespace firstlight {

std::string StopStrings::push(std::string_view text) {
  if (found_) return "";
  held_ += text;
  size_t begin = std::string::npos, end = std::string::npos;
  for (const std::string& stop : stops_) {
    const size_t at = held_.find(stop);
    if (at == std::string::npos) continue;
    const size_t stop_end = at + stop.size();
    if (stop_end < end || (stop_end == end && at < begin)) {
      begin = at;
      end = stop_end;
    }
  }
  std::string certain;
  if (end != std::string::npos) {
    found_ = true;
    certain = held_.substr(0, begin);
    held_.clear();
    return certain;
  }
  const size_t n_certain = held_.size() - held_length();
  certain = held_.substr(0, n_certain);
  held_.erase(0, n_certain);
  return certain;
}

std::string StopStrings::finish() { return std::exchange(held_, {}); }

// The longest end of what is held that begins a stop string.
size_t StopStrings::held_length() const noexcept {
  size_t longest = 0;
  const std::string_view held = held_;
  for (const std::string& stop : stops_) {
    for (size_t n = std::min(held.size(), stop.size() - 1); n > longest; --n) {
      if (held.substr(held.size() - n) == std::string_view(stop).substr(0, n)) longest = n;
    }
  }
  return longest;
}

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
#include "firstlight/base/str.h"

#include <array>
#include <cmath>
#include <cstdio>

namespace firstlight {

namespace {

std::string with_unit(double value, const char* unit) {
  std::array<char, 64> text{};
  const char* format = value >= 100 ? "%.0f %s" : value >= 10 ? "%.1f %s" : "%.2f %s";
  std::snprintf(text.data(), text.size(), format, value, unit);
  return text.data();
}

}  // namespace

std::string human_bytes(double bytes) {
  if (bytes < 1e3) return str(static_cast<long long>(bytes), " B");
  if (bytes < 1e6) return with_unit(bytes / 1e3, "kB");
  if (bytes < 1e9) return with_unit(bytes / 1e6, "MB");
  if (bytes < 1e12) return with_unit(bytes / 1e9, "GB");
  return with_unit(bytes / 1e12, "TB");
}

std::string human_seconds(double seconds) {
  if (seconds < 1e-3) return with_unit(seconds * 1e6, "µs");
  if (seconds < 1) return with_unit(seconds * 1e3, "ms");
  if (seconds < 60) return with_unit(seconds, "s");
  const auto whole = static_cast<long long>(std::llround(seconds));
  if (whole < 3600) return str(whole / 60, " min ", whole % 60, " s");
  return str(whole / 3600, " h ", whole % 3600 / 60, " min");
}

}  // namespace firstlight

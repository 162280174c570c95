// SPDX-License-Identifier: Apache-2.0
// str(...) joins anything that an ostream takes: std::format is missing from g++ 12. For messages, not for hot loops.
#pragma once
#include <sstream>
#include <string>

namespace firstlight {

template <class... Parts>
std::string str(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return std::move(out).str();
}

/// 1234567890 → "1.23 GB" (GB = 10⁹ bytes).
std::string human_bytes(double bytes);
/// 0.0123 → "12.3 ms", 75 → "1 min 15 s".
std::string human_seconds(double seconds);

}  // namespace firstlight

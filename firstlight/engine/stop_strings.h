// SPDX-License-Identifier: Apache-2.0
// Ends a stream of text before the first stop string, wherever the pieces are cut.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace firstlight {

/// Holds text back while it may be the beginning of a stop string. The outcome depends on the text alone, not on its
/// pieces: the first stop string to be complete ends it; of two that end together, the one that begins first.
class StopStrings {
 public:
  explicit StopStrings(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  /// Adds text; returns what became certain. After found() it returns nothing more.
  std::string push(std::string_view text);
  bool found() const noexcept { return found_; }
  /// What was held back, at the end of the stream.
  std::string finish();

 private:
  size_t held_length() const noexcept;

  std::vector<std::string> stops_;
  std::string held_;
  bool found_ = false;
};

}  // namespace firstlight

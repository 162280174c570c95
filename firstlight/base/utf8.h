// SPDX-License-Identifier: Apache-2.0
// Well-formed UTF-8 (Unicode 15, table 3-7): no overlong forms, no surrogates, nothing above U+10FFFF.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace firstlight {

/// One step through text that may be malformed.
struct Utf8Step {
  uint32_t size = 0;  ///< bytes: of the character, or of the longest ill-formed part (Unicode 3.9, table 3-7)
  bool valid = false;
  bool unfinished = false;  ///< not valid, but ends with the text and could become valid with more bytes
};
/// `text` must not be empty.
Utf8Step utf8_step(std::string_view text) noexcept;
/// For a terminal: ill-formed parts as U+FFFD, and control characters but newline and tab as U+FFFD, too, also those
/// that turn the direction of text: so that text from a file cannot steer the terminal.
std::string printable(std::string_view text);
/// Whether there is a byte below 0x20, or DEL.
bool has_control(std::string_view text) noexcept;
bool is_utf8(std::string_view text) noexcept;
/// Each ill-formed part becomes one U+FFFD.
std::string to_valid_utf8(std::string_view text);

}  // namespace firstlight

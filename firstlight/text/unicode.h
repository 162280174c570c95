// SPDX-License-Identifier: Apache-2.0
// UTF-8, classes of characters and normalisation form C, all as the Python package tokenizers sees them (its version of
// Unicode differs from other libraries' on thousands of letters).
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "firstlight/base/utf8.h"

namespace firstlight {

/// Bits of a character's class.
enum CharClass : uint8_t {
  kLetter = 1,     ///< \p{L}
  kMark = 2,       ///< \p{M}
  kNumber = 4,     ///< \p{N} of patterns
  kSpace = 8,      ///< \s of patterns
  kDigit = 16,     ///< what the Digits pre-tokenizer sets apart
  kWord = 32,      ///< what single_word takes for part of a word
  kStripped = 64,  ///< what lstrip and rstrip take
  kNfcWork = 128,  ///< text without any of these is in form C already
};

/// Two-level table of CharClass bits, 256 code points a block.
class CharClasses {
 public:
  CharClasses();
  uint8_t operator[](char32_t c) const { return blocks_[static_cast<size_t>(index_[c >> 8]) << 8 | (c & 0xFF)]; }

 private:
  std::array<uint16_t, 0x1100> index_{};
  std::vector<uint8_t> blocks_;
};

/// Made on first use (about 20 microseconds); any thread.
const CharClasses& char_classes();

struct Utf8Char {
  char32_t code = 0;
  uint32_t size = 0;
};
/// The character that begins at `p`; the text must be valid.
inline Utf8Char utf8_char(const char* p) noexcept {
  const auto b = [p](int i) { return static_cast<char32_t>(static_cast<unsigned char>(p[i])); };
  if (b(0) < 0x80) return {b(0), 1};
  if (b(0) < 0xE0) return {(b(0) & 0x1F) << 6 | (b(1) & 0x3F), 2};
  if (b(0) < 0xF0) return {(b(0) & 0x0F) << 12 | (b(1) & 0x3F) << 6 | (b(2) & 0x3F), 3};
  return {(b(0) & 0x07) << 18 | (b(1) & 0x3F) << 12 | (b(2) & 0x3F) << 6 | (b(3) & 0x3F), 4};
}
/// Bytes of the character whose first byte is `lead`, in valid text.
inline uint32_t utf8_size(char lead) noexcept {
  const auto b = static_cast<unsigned char>(lead);
  return b < 0x80 ? 1 : b < 0xE0 ? 2 : b < 0xF0 ? 3 : 4;
}
void append_utf8(std::string& out, char32_t code);

/// Whether valid UTF-8 surely is in form C (false: to_nfc may still give the same text).
bool is_surely_nfc(std::string_view text) noexcept;
/// Normalisation form C of valid UTF-8. Linear but for runs of combining marks, which are sorted.
std::string to_nfc(std::string_view text);

}  // namespace firstlight

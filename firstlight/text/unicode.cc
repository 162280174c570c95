// SPDX-License-Identifier: Apache-2.0
// UTF-8 and the class table.
#include "firstlight/text/unicode.h"

#include <algorithm>
#include <cstring>

#include "firstlight/text/unicode_tables.h"

namespace firstlight {

CharClasses::CharClasses() {
  // Whole blocks of one class share a block, so that letters of Han or Hangul cost one.
  std::array<int, 256> uniform;
  uniform.fill(-1);
  std::array<uint8_t, 256> block;
  size_t filled = 0, n_blocks = 0;
  const auto finish = [&](size_t which) {
    const bool same = std::all_of(block.begin(), block.end(), [&](uint8_t c) { return c == block[0]; });
    if (same && uniform[block[0]] >= 0) {
      index_[which] = static_cast<uint16_t>(uniform[block[0]]);
      return;
    }
    if (same) uniform[block[0]] = static_cast<int>(n_blocks);
    index_[which] = static_cast<uint16_t>(n_blocks++);
    blocks_.insert(blocks_.end(), block.begin(), block.end());
  };
  size_t which = 0;
  for (size_t i = 0; i < kNumCharClassRuns; ++i) {
    size_t length = kCharClassRuns[i] >> 8;
    const auto bits = static_cast<uint8_t>(kCharClassRuns[i] & 0xFF);
    while (length > 0) {
      const size_t part = std::min(length, 256 - filled);
      std::memset(block.data() + filled, bits, part);
      filled += part;
      length -= part;
      if (filled == 256) {
        finish(which++);
        filled = 0;
      }
    }
  }
}

const CharClasses& char_classes() {
  static const CharClasses classes;
  return classes;
}

void append_utf8(std::string& out, char32_t code) {
  const auto put = [&](char32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xC0 | code >> 6);
    put(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    put(0xE0 | code >> 12);
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  } else {
    put(0xF0 | code >> 18);
    put(0x80 | (code >> 12 & 0x3F));
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  }
}

bool is_surely_nfc(std::string_view text) noexcept {
  const CharClasses& classes = char_classes();
  size_t i = 0;
  while (i < text.size()) {
    if (static_cast<unsigned char>(text[i]) < 0x80) {
      ++i;
      continue;
    }
    const Utf8Char c = utf8_char(text.data() + i);
    if ((classes[c.code] & kNfcWork) != 0) return false;
    i += c.size;
  }
  return true;
}

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// The 256 printable characters that byte-level vocabularies write bytes with: printable Latin-1 stands for itself, the
// 68 other bytes follow from U+0100 on, in order.
#pragma once
#include <array>
#include <cstdint>

namespace firstlight {

constexpr bool is_own_letter(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || (byte >= 0xAE && byte <= 0xFF);
}

struct ByteAlphabet {
  std::array<char32_t, 256> letter_of{};
  std::array<int16_t, 0x144> byte_of{};  ///< -1 where a character stands for no byte

  constexpr ByteAlphabet() {
    for (int16_t& byte : byte_of) byte = -1;
    char32_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const char32_t letter = is_own_letter(byte) ? static_cast<char32_t>(byte) : next++;
      letter_of[static_cast<size_t>(byte)] = letter;
      byte_of[letter] = static_cast<int16_t>(byte);
    }
  }
};

inline constexpr ByteAlphabet kByteAlphabet;

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// Normalisation form C (Unicode Standard Annex 15): decompose, order the marks, compose again; Hangul by arithmetic.
#include <algorithm>
#include <utility>
#include <vector>

#include "firstlight/text/unicode.h"
#include "firstlight/text/unicode_tables.h"

namespace firstlight {
namespace {

// Section 3.12 of the Unicode Standard.
constexpr char32_t kHangul = 0xAC00, kLead = 0x1100, kVowel = 0x1161, kTail = 0x11A7;
constexpr char32_t kNumVowels = 21, kNumTails = 28, kNumHangul = 19 * kNumVowels * kNumTails;

struct Char {
  char32_t code;
  uint8_t combining;
};

class NfcTables {
 public:
  NfcTables() {
    char32_t code = 0;
    for (size_t i = 0; i < kNumDecompositionWords;) {
      const uint32_t head = kDecompositions[i];
      code += head >> 4;
      decompositions_.emplace_back(code, static_cast<uint32_t>(i));
      if ((head >> 3 & 1) != 0) pairs_.push_back({pair(kDecompositions[i + 1], kDecompositions[i + 2]), code});
      i += 1 + (head & 7);
    }
    code = 0;
    for (size_t i = 0; i < kNumCombiningClasses; ++i) {
      code += kCombiningClasses[i] >> 8;
      combining_.emplace_back(code, static_cast<uint8_t>(kCombiningClasses[i] & 0xFF));
    }
    std::sort(pairs_.begin(), pairs_.end());
  }

  uint8_t combining(char32_t code) const {
    const auto it = std::lower_bound(combining_.begin(), combining_.end(), std::pair<char32_t, uint8_t>(code, 0));
    return it != combining_.end() && it->first == code ? it->second : 0;
  }

  void decompose(char32_t code, std::vector<Char>& out) const {
    if (code - kHangul < kNumHangul) {
      const char32_t s = code - kHangul;
      out.push_back({kLead + s / (kNumVowels * kNumTails), 0});
      out.push_back({kVowel + s % (kNumVowels * kNumTails) / kNumTails, 0});
      if (s % kNumTails != 0) out.push_back({kTail + s % kNumTails, 0});
      return;
    }
    const auto it =
        std::lower_bound(decompositions_.begin(), decompositions_.end(), std::pair<char32_t, uint32_t>(code, 0));
    if (it == decompositions_.end() || it->first != code) {
      out.push_back({code, combining(code)});
      return;
    }
    // One level a record: the tables are ours, and their chains are at most four long.
    const uint32_t* record = kDecompositions + it->second;
    for (uint32_t i = 1; i <= (*record & 7); ++i) decompose(record[i], out);
  }

  /// 0 if the two have no composition.
  char32_t compose(char32_t first, char32_t second) const {
    if (first - kLead < 19 && second - kVowel < kNumVowels) {
      return kHangul + ((first - kLead) * kNumVowels + (second - kVowel)) * kNumTails;
    }
    if (first - kHangul < kNumHangul && (first - kHangul) % kNumTails == 0 && second > kTail &&
        second < kTail + kNumTails) {
      return first + (second - kTail);
    }
    const auto it =
        std::lower_bound(pairs_.begin(), pairs_.end(), std::pair<uint64_t, char32_t>(pair(first, second), 0));
    return it != pairs_.end() && it->first == pair(first, second) ? it->second : 0;
  }

 private:
  static uint64_t pair(char32_t first, char32_t second) { return static_cast<uint64_t>(first) << 32 | second; }

  std::vector<std::pair<char32_t, uint32_t>> decompositions_;  // code point → index of its record
  std::vector<std::pair<uint64_t, char32_t>> pairs_;
  std::vector<std::pair<char32_t, uint8_t>> combining_;
};

const NfcTables& nfc_tables() {
  static const NfcTables tables;
  return tables;
}

void order_marks(std::vector<Char>& chars) {
  for (size_t i = 0; i < chars.size();) {
    if (chars[i].combining == 0) {
      ++i;
      continue;
    }
    size_t end = i;
    while (end < chars.size() && chars[end].combining != 0) ++end;
    std::stable_sort(chars.begin() + static_cast<std::ptrdiff_t>(i), chars.begin() + static_cast<std::ptrdiff_t>(end),
                     [](const Char& a, const Char& b) { return a.combining < b.combining; });
    i = end;
  }
}

}  // namespace

std::string to_nfc(std::string_view text) {
  if (is_surely_nfc(text)) return std::string(text);
  const NfcTables& tables = nfc_tables();
  std::vector<Char> chars;
  chars.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const Utf8Char c = utf8_char(text.data() + i);
    i += c.size;
    if (c.code < 0x80) {
      chars.push_back({c.code, 0});
    } else {
      tables.decompose(c.code, chars);
    }
  }
  order_marks(chars);

  // In place: what is composed is written at `n`, behind what is read.
  constexpr size_t kNone = ~size_t{0};
  size_t n = 0, starter = kNone;
  for (const Char c : chars) {
    if (starter != kNone && (n == starter + 1 || chars[n - 1].combining < c.combining)) {
      if (const char32_t composed = tables.compose(chars[starter].code, c.code); composed != 0) {
        chars[starter].code = composed;
        continue;
      }
    }
    if (c.combining == 0) starter = n;
    chars[n++] = c;
  }
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < n; ++i) append_utf8(out, chars[i].code);
  return out;
}

}  // namespace firstlight

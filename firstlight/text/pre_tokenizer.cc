// SPDX-License-Identifier: Apache-2.0
// The alternatives of each pattern are tried in its order; the comments quote them.
#include "firstlight/text/pre_tokenizer.h"

#include "firstlight/text/unicode.h"

namespace firstlight {
namespace {

constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

enum class Class { end, letter, number, space, other };

class Scanner {
 public:
  Scanner(std::string_view text, bool ends_at_digits)
      : text_(text), ends_at_digits_(ends_at_digits), classes_(char_classes()) {}

  struct Char {
    char32_t code = 0;
    uint32_t size = 0;
    Class kind = Class::end;
  };

  Char at(size_t i) const {
    if (i >= text_.size()) return {};
    const Utf8Char c = utf8_char(text_.data() + i);
    const uint8_t bits = classes_[c.code];
    if (ends_at_digits_ && (bits & kDigit) != 0) return {};
    const Class kind = (bits & kLetter) != 0   ? Class::letter
                       : (bits & kNumber) != 0 ? Class::number
                       : (bits & kSpace) != 0  ? Class::space
                                               : Class::other;
    return {c.code, c.size, kind};
  }

  bool is_digit(size_t i) const { return (classes_[utf8_char(text_.data() + i).code] & kDigit) != 0; }

  /// Behind the run of one class that begins at i.
  size_t run_end(size_t i, Class kind) const {
    for (Char c = at(i); c.kind == kind; c = at(i)) i += c.size;
    return i;
  }

  size_t newlines_end(size_t i) const {
    while (i < text_.size() && (text_[i] == '\r' || text_[i] == '\n')) ++i;
    return i;
  }

  /// 's 't 're 've 'm 'll 'd behind the apostrophe at i; 0 if there is none. Without case, ſ (U+017F) is an s too.
  size_t contraction_end(size_t i, bool any_case) const {
    const auto letter = [&](size_t at) -> char {
      if (at >= text_.size()) return 0;
      if (any_case && text_.substr(at, 2) == "\xC5\xBF") return 's';
      const char c = text_[at];
      return any_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    };
    const char first = letter(i + 1), second = letter(i + 2);
    if (first == 's') return i + (text_[i + 1] == '\xC5' ? 3 : 2);
    if (first == 't' || first == 'm' || first == 'd') return i + 2;
    if (((first == 'r' || first == 'v') && second == 'e') || (first == 'l' && second == 'l')) return i + 3;
    return 0;
  }

  /// \s+(?!\S)|\s+ : a run of spaces, less its last one if something follows and more than one is there.
  size_t spaces_end(size_t begin) const {
    size_t i = begin, last = begin;
    for (Char c = at(i); c.kind == Class::space; c = at(i)) {
      last = i;
      i += c.size;
    }
    return at(i).kind == Class::end || last == begin ? i : last;
  }

  /// \s*[\r\n]+ : to behind the last line end of a run of spaces; 0 if it has none.
  size_t lines_end(size_t i) const {
    size_t end = 0;
    for (Char c = at(i); c.kind == Class::space; c = at(i)) {
      i += c.size;
      if (c.code == '\r' || c.code == '\n') end = i;
    }
    return end;
  }

 private:
  std::string_view text_;
  bool ends_at_digits_;
  const CharClasses& classes_;
};

size_t gpt2_piece(const Scanner& scan, size_t begin) {
  Scanner::Char c = scan.at(begin);
  if (c.code == '\'') {
    if (const size_t end = scan.contraction_end(begin, false); end != 0) return end;
  }
  size_t i = begin;
  if (c.code == ' ') {  //  ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+
    const Scanner::Char next = scan.at(begin + 1);
    if (next.kind != Class::space && next.kind != Class::end) {
      c = next;
      ++i;
    }
  }
  return c.kind == Class::space ? scan.spaces_end(begin) : scan.run_end(i, c.kind);
}

size_t llama3_piece(const Scanner& scan, size_t begin, int max_digits) {
  const Scanner::Char c = scan.at(begin);
  if (c.code == '\'') {
    if (const size_t end = scan.contraction_end(begin, true); end != 0) return end;
  }
  if (c.kind == Class::letter) return scan.run_end(begin, Class::letter);
  if (c.kind == Class::number) {  // \p{N}{1,3} or \p{N}
    size_t i = begin;
    for (int n = 0; n < max_digits && scan.at(i).kind == Class::number; ++n) i += scan.at(i).size;
    return i;
  }
  const Scanner::Char next = scan.at(begin + c.size);
  if (c.code != '\r' && c.code != '\n' && next.kind == Class::letter) {  // [^\r\n\p{L}\p{N}]?\p{L}+
    return scan.run_end(begin + c.size, Class::letter);
  }
  if (c.kind == Class::other || (c.code == ' ' && next.kind == Class::other)) {  //  ?[^\s\p{L}\p{N}]+[\r\n]*
    return scan.newlines_end(scan.run_end(begin + (c.kind == Class::other ? 0 : 1), Class::other));
  }
  if (const size_t end = scan.lines_end(begin); end != 0) return end;
  return scan.spaces_end(begin);
}

}  // namespace

size_t piece_end(PreTokenizer pre, std::string_view text, size_t begin) {
  switch (pre) {
    case PreTokenizer::gpt2:
      return gpt2_piece(Scanner(text, false), begin);
    case PreTokenizer::smollm: {
      const Scanner scan(text, true);  // a digit ends the text for what stands before it
      if (scan.is_digit(begin)) return begin + utf8_size(text[begin]);
      return gpt2_piece(scan, begin);
    }
    case PreTokenizer::llama_bpe:
      return llama3_piece(Scanner(text, false), begin, 3);
    case PreTokenizer::qwen2:
      return llama3_piece(Scanner(text, false), begin, 1);
    case PreTokenizer::llama_spm:
      break;
  }
  return text.size();
}

std::optional<PreTokenizer> pre_tokenizer_of_pattern(std::string_view pattern) {
  if (pattern == kGpt2Pattern) return PreTokenizer::gpt2;
  if (pattern == kLlama3Pattern) return PreTokenizer::llama_bpe;
  if (pattern == kQwen2Pattern) return PreTokenizer::qwen2;
  return std::nullopt;
}

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
#include "firstlight/text/jinja_lexer.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>
#include <utility>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/text/jinja_text.h"

namespace firstlight::jinja {

void syntax_error(int line, std::string_view what) {
  throw Error(ErrorKind::bad_input, str("chat template line ", line, ": ", what));
}

namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name_start(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool is_name_char(char c) { return is_name_start(c) || is_digit(c); }

// Every kind of line end becomes "\n"; one at the very end is dropped.
std::string normalise_newlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t at = 0; at < source.size(); ++at) {
    if (source[at] != '\r') {
      out.push_back(source[at]);
      continue;
    }
    out.push_back('\n');
    if (at + 1 < source.size() && source[at + 1] == '\n') ++at;
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalise_newlines(source)) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) lex_data();
    add(TokenKind::end, "");
    return std::move(tokens_);
  }

 private:
  std::string_view rest() const { return std::string_view(source_).substr(at_); }
  bool starts_with(std::string_view text) const { return rest().substr(0, text.size()) == text; }
  // True once after something ended in a newline: a tag at a line's beginning may then be stripped on the left.
  void advance(size_t n) {
    if (n == 0) return;
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(at_),
                                         source_.begin() + static_cast<std::ptrdiff_t>(at_ + n), '\n'));
    at_ += n;
    line_starting_ = source_[at_ - 1] == '\n';
  }
  size_t space_length(size_t from) const {
    size_t at = from;
    while (at < source_.size()) {
      size_t next = at;
      if (!is_space(next_char(source_, next))) break;
      at = next;
    }
    return at - from;
  }
  void add(TokenKind kind, std::string_view text) { tokens_.push_back({kind, line_, std::string(text), 0, 0}); }

  // Text up to a tag, shortened as the tag's sign ("-", "+" or none) and lstrip_blocks ask.
  void add_data(std::string_view text, char sign, bool is_output) {
    if (sign == '-') {
      text = strip(text, std::nullopt, false, true);
    } else if (sign != '+' && !is_output) {
      const size_t newline = text.rfind('\n');
      const size_t line_begin = newline == std::string_view::npos ? 0 : newline + 1;
      if ((line_begin > 0 || line_starting_) && strip(text.substr(line_begin), std::nullopt, true, true).empty()) {
        text = text.substr(0, line_begin);
      }
    }
    if (!text.empty()) add(TokenKind::data, text);
  }

  char sign_at(size_t at) const {
    return at < source_.size() && (source_[at] == '-' || source_[at] == '+') ? source_[at] : '\0';
  }

  // The length of `{%[-+]\s*WORD\s*` plus the end of the tag at `at`; 0 if it is something else.
  size_t word_tag_length(size_t at, std::string_view word, bool plus_ends, bool trims) const {
    const size_t begin = at;
    at += 2 + (sign_at(at + 2) != '\0' ? 1 : 0);
    at += space_length(at);
    if (source_.compare(at, word.size(), word) != 0) return 0;
    at += word.size();
    at += space_length(at);
    const size_t length = end_tag_length(at, "%}", plus_ends, trims);
    return length == 0 ? 0 : at + length - begin;
  }

  // The length of a tag's end at `at`, with the white space it swallows; 0 if none stands there.
  size_t end_tag_length(size_t at, std::string_view end, bool plus_ends, bool trims) const {
    if (at >= source_.size()) return 0;
    if (source_[at] == '-' && source_.compare(at + 1, 2, end) == 0) return 3 + space_length(at + 3);
    if (plus_ends && source_[at] == '+' && source_.compare(at + 1, 2, end) == 0) return 3;
    if (source_.compare(at, 2, end) != 0) return 0;
    return 2 + (trims && at + 2 < source_.size() && source_[at + 2] == '\n' ? 1 : 0);
  }

  void lex_data() {
    size_t tag = at_;
    while ((tag = source_.find('{', tag)) != std::string::npos) {
      const char next = tag + 1 < source_.size() ? source_[tag + 1] : '\0';
      if (next == '{' || next == '%' || next == '#') break;
      ++tag;
    }
    if (tag == std::string::npos) {
      add(TokenKind::data, rest());
      return advance(source_.size() - at_);
    }
    const char kind = source_[tag + 1];
    const char sign = sign_at(tag + 2);
    add_data(rest().substr(0, tag - at_), sign, kind == '{');
    advance(tag - at_);
    if (kind == '%') {
      if (const size_t length = word_tag_length(at_, "raw", false, false)) {
        advance(length);
        return lex_raw();
      }
    }
    if (kind == '#') return lex_comment(sign);
    add(kind == '{' ? TokenKind::output_begin : TokenKind::block_begin, "");
    advance(sign != '\0' ? 3 : 2);
    lex_tag(kind == '{');
  }

  void lex_comment(char sign) {
    const int line = line_;
    advance(sign != '\0' ? 3 : 2);
    for (size_t at = at_; at < source_.size(); ++at) {
      const size_t length = end_tag_length(at, "#}", true, true);
      if (length == 0) continue;
      return advance(at + length - at_);
    }
    syntax_error(line, "a comment has no end: expected '#}'");
  }

  void lex_raw() {
    const int line = line_;
    for (size_t at = at_; (at = source_.find("{%", at)) != std::string::npos; ++at) {
      const size_t length = word_tag_length(at, "endraw", true, true);
      if (length == 0) continue;
      add_data(rest().substr(0, at - at_), sign_at(at + 2), false);
      return advance(at + length - at_);
    }
    syntax_error(line, "a raw block has no end: expected '{% endraw %}'");
  }

  void lex_tag(bool is_output) {
    std::vector<char> open;  // brackets: "}}" ends a tag only outside of them
    const int line = line_;
    while (at_ < source_.size()) {
      if (open.empty()) {
        const size_t length =
            is_output ? end_tag_length(at_, "}}", false, false) : end_tag_length(at_, "%}", true, true);
        if (length != 0) {
          add(is_output ? TokenKind::output_end : TokenKind::block_end, "");
          return advance(length);
        }
      }
      if (const size_t space = space_length(at_)) {
        advance(space);
        continue;
      }
      const char c = source_[at_];
      if (is_digit(c))
        lex_number();
      else if (is_name_start(c))
        lex_name();
      else if (c == '\'' || c == '"')
        lex_string();
      else
        lex_operator(open);
    }
    syntax_error(line, str("a tag has no end: expected '", is_output ? "}}" : "%}", "'"));
  }

  void lex_name() {
    size_t length = 1;
    while (at_ + length < source_.size() && is_name_char(source_[at_ + length])) ++length;
    add(TokenKind::name, rest().substr(0, length));
    advance(length);
  }

  // Digits with single underscores between them, from `at`.
  size_t digits_length(size_t at) const {
    const size_t begin = at;
    while (at < source_.size() &&
           (is_digit(source_[at]) || (source_[at] == '_' && at > begin && at + 1 < source_.size() &&
                                      is_digit(source_[at + 1]) && source_[at - 1] != '_'))) {
      ++at;
    }
    return at - begin;
  }

  void lex_number() {
    const bool after_dot = at_ > 0 && source_[at_ - 1] == '.';
    size_t length = digits_length(at_);
    const size_t whole = length;
    if (!after_dot && at_ + length + 1 < source_.size() && source_[at_ + length] == '.' &&
        is_digit(source_[at_ + length + 1])) {
      length += 1 + digits_length(at_ + length + 1);
    }
    if (!after_dot && at_ + length < source_.size() && (source_[at_ + length] | 0x20) == 'e') {
      const size_t sign = sign_at(at_ + length + 1) != '\0' ? 1 : 0;
      const size_t exponent = digits_length(at_ + length + 1 + sign);
      if (exponent != 0) length += 1 + sign + exponent;
    }
    if (length != whole) return add_real(length);
    add_integer();
  }

  std::string without_underscores(std::string_view text) const {
    std::string out(text);
    out.erase(std::remove(out.begin(), out.end(), '_'), out.end());
    return out;
  }

  void add_real(size_t length) {
    const std::string digits = without_underscores(rest().substr(0, length));
    Token token{TokenKind::real, line_, digits, 0, 0};
    token.real = std::strtod(digits.c_str(), nullptr);
    tokens_.push_back(std::move(token));
    advance(length);
  }

  void add_integer() {
    static constexpr std::array<std::pair<char, int>, 3> kPrefixes{{{'b', 2}, {'o', 8}, {'x', 16}}};
    int base = 10;
    size_t begin = 0, length = 0;
    const auto digit = [&](size_t at) {
      const char c = at < source_.size() ? source_[at] : '\0';
      const int value = is_digit(c) ? c - '0' : (c | 0x20) >= 'a' && (c | 0x20) <= 'f' ? (c | 0x20) - 'a' + 10 : 99;
      return value < base;
    };
    const auto run = [&](size_t from) {
      size_t n = 0;
      while (digit(from + n) || (source_[from + n] == '_' && digit(from + n + 1))) ++n;
      return n;
    };
    if (source_[at_] == '0' && at_ + 1 < source_.size()) {
      for (const auto& [letter, prefix_base] : kPrefixes) {
        if ((source_[at_ + 1] | 0x20) != letter) continue;
        base = prefix_base;
        if (const size_t n = run(at_ + 2)) {
          begin = 2;
          length = 2 + n;
        }
      }
    }
    if (length == 0) {
      base = source_[at_] == '0' ? 1 : 10;  // "0", "00", "0_0"; "08" is two numbers, which the parser refuses
      length = run(at_);
    }
    const std::string digits = without_underscores(rest().substr(begin, length - begin));
    Token token{TokenKind::integer, line_, std::string(rest().substr(0, length)), 0, 0};
    const auto result =
        std::from_chars(digits.data(), digits.data() + digits.size(), token.integer, base == 1 ? 10 : base);
    if (result.ec != std::errc()) syntax_error(line_, str("the integer ", token.text, " does not fit into 64 bits"));
    tokens_.push_back(std::move(token));
    advance(length);
  }

  void lex_operator(std::vector<char>& open) {
    static constexpr std::string_view kTwo[] = {"==", "!=", ">=", "<=", "//", "**"};
    for (const std::string_view op : kTwo) {
      if (!starts_with(op)) continue;
      add(TokenKind::op, op);
      return advance(2);
    }
    const char c = source_[at_];
    if (std::string_view("+-/*%~[](){}=<>.:|,;").find(c) == std::string_view::npos) {
      size_t end = at_;
      next_char(source_, end);
      syntax_error(line_, str("unexpected character '", source_.substr(at_, end - at_), "'"));
    }
    if (c == '(' || c == '[' || c == '{') open.push_back(c == '(' ? ')' : c == '[' ? ']' : '}');
    if (c == ')' || c == ']' || c == '}') {
      if (open.empty()) syntax_error(line_, str("unexpected '", c, "'"));
      if (open.back() != c) syntax_error(line_, str("unexpected '", c, "', expected '", open.back(), "'"));
      open.pop_back();
    }
    add(TokenKind::op, std::string_view(&c, 1));
    advance(1);
  }

  void lex_string() {
    const char quote = source_[at_];
    size_t end = at_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) syntax_error(line_, str("a string has no end: expected ", quote));
    Token token{TokenKind::string, line_, unescape(std::string_view(source_).substr(at_ + 1, end - at_ - 1)), 0, 0};
    tokens_.push_back(std::move(token));
    advance(end + 1 - at_);
  }

  // n hexadecimal digits behind an escape, as a character.
  char32_t hex_escape(std::string_view text, size_t at, size_t n) const {
    uint32_t value = 0;
    const std::string_view digits = text.substr(std::min(at, text.size()), n);
    const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
    if (digits.size() != n || result.ptr != digits.data() + n)
      syntax_error(line_, "a string's \\x, \\u or \\U escape is cut short");
    if (value > 0x10ffff || (value >= 0xd800 && value < 0xe000)) {
      syntax_error(line_, "a string's escape names no character that text can hold");
    }
    return value;
  }

  std::string unescape(std::string_view text) const {
    std::string out;
    for (size_t at = 0; at < text.size();) {
      if (text[at] != '\\') {
        out.push_back(text[at++]);
        continue;
      }
      const char c = text[at + 1];  // the scanner never ends a string behind a backslash
      static constexpr std::string_view kLetters = "abfnrtv\\'\"";
      static constexpr std::string_view kValues = "\a\b\f\n\r\t\v\\'\"";
      const size_t simple = kLetters.find(c);
      if (simple != std::string_view::npos) {
        out.push_back(kValues[simple]);
        at += 2;
      } else if (c == '\n') {
        at += 2;
      } else if (c >= '0' && c <= '7') {
        char32_t value = 0;
        size_t n = 0;
        while (n < 3 && at + 1 + n < text.size() && text[at + 1 + n] >= '0' && text[at + 1 + n] <= '7') {
          value = value * 8 + static_cast<char32_t>(text[at + 1 + n++] - '0');
        }
        append_char(out, value);
        at += 1 + n;
      } else if (c == 'x' || c == 'u' || c == 'U') {
        const size_t n = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        append_char(out, hex_escape(text, at + 2, n));
        at += 2 + n;
      } else if (c == 'N') {
        syntax_error(line_, "a string has a \\N escape, which is not supported");
      } else {
        append_unknown_escape(out, text, at);
      }
    }
    return out;
  }

  // An unknown escape stays as it is; a non-ASCII character behind a backslash becomes its own escape's text, as
  // Python's "backslashreplace" followed by "unicode-escape" makes it.
  void append_unknown_escape(std::string& out, std::string_view text, size_t& at) const {
    ++at;
    size_t end = at;
    const char32_t c = next_char(text, end);
    out.push_back('\\');
    if (c < 0x80) {
      out.push_back(static_cast<char>(c));
    } else {
      char hex[16];
      std::snprintf(hex, sizeof hex, c < 0x100 ? "x%02x" : c < 0x10000 ? "u%04x" : "U%08x", static_cast<unsigned>(c));
      out.append(hex);
    }
    at = end;
  }

  std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

}  // namespace firstlight::jinja

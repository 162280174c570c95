// SPDX-License-Identifier: Apache-2.0
#include "firstlight/text/json_cursor.h"

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/text/unicode.h"

namespace firstlight {
namespace {

constexpr int kDeepest = 64;

/// Characters that end a run of plain ones in a string.
bool is_special_in_string(char c) { return c == '"' || c == '\\' || static_cast<unsigned char>(c) < 0x20; }

}  // namespace

void JsonCursor::fail(const std::string& what) const {
  throw Error(ErrorKind::bad_input, str(name_, ": ", what, ", byte ", at_));
}

void JsonCursor::skip_space() {
  while (at_ < text_.size()) {
    const char c = text_[at_];
    if (c != ' ' && c != '\n' && c != '\r' && c != '\t') return;
    ++at_;
  }
}

char JsonCursor::peek() {
  skip_space();
  return at_ < text_.size() ? text_[at_] : '\0';
}

bool JsonCursor::take(char c) {
  if (peek() != c || at_ == text_.size()) return false;
  ++at_;
  return true;
}

void JsonCursor::expect(char c) {
  if (!take(c)) {
    if (at_ == text_.size()) fail(str("found the end, expected '", c, "'"));
    fail(str("found '", to_valid_utf8(text_.substr(at_, utf8_size(text_[at_]))), "', expected '", c, "'"));
  }
}

std::string_view JsonCursor::string() {
  expect('"');
  const size_t begin = at_;
  const char* p = text_.data();
  while (at_ < text_.size() && !is_special_in_string(p[at_])) ++at_;
  if (at_ < text_.size() && p[at_] == '"') return text_.substr(begin, at_++ - begin);
  memory_.assign(text_.substr(begin, at_ - begin));
  while (true) {
    if (at_ == text_.size()) fail("a string without end");
    const char c = p[at_];
    if (c == '"') break;
    if (c == '\\') {
      escape();
    } else if (static_cast<unsigned char>(c) < 0x20) {
      fail("a control character in a string");
    } else {
      memory_.push_back(c);
      ++at_;
    }
  }
  ++at_;
  return memory_;
}

void JsonCursor::escape() {
  ++at_;
  if (at_ == text_.size()) fail("a string without end");
  constexpr std::string_view kNames = "\"\\/bfnrt", kValues = "\"\\/\b\f\n\r\t";
  const char c = text_[at_++];
  if (const size_t which = kNames.find(c); which != std::string_view::npos) {
    memory_.push_back(kValues[which]);
    return;
  }
  if (c != 'u') fail("an unknown escape in a string");
  uint32_t code = hex4();
  if (code >= 0xDC00 && code < 0xE000) fail("half a surrogate pair in a string");
  if (code >= 0xD800 && code < 0xDC00) {
    if (text_.substr(at_, 2) != "\\u") fail("half a surrogate pair in a string");
    at_ += 2;
    const uint32_t low = hex4();
    if (low < 0xDC00 || low >= 0xE000) fail("half a surrogate pair in a string");
    code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
  }
  append_utf8(memory_, code);
}

uint32_t JsonCursor::hex4() {
  uint32_t code = 0;
  for (int i = 0; i < 4; ++i, ++at_) {
    const char c = at_ < text_.size() ? text_[at_] : '\0';
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                             : -1;
    if (digit < 0) fail("\\u without four hexadecimal digits in a string");
    code = code << 4 | static_cast<uint32_t>(digit);
  }
  return code;
}

uint32_t JsonCursor::number() {
  skip_space();
  const size_t begin = at_;
  uint64_t value = 0;
  while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') {
    value = value * 10 + static_cast<uint64_t>(text_[at_++] - '0');
    if (value > UINT32_MAX) fail("a number above 4294967295");
  }
  const char after = at_ < text_.size() ? text_[at_] : '\0';
  if (at_ == begin || (text_[begin] == '0' && at_ > begin + 1) || after == '.' || after == 'e' || after == 'E') {
    fail("expected a whole number from 0 on");
  }
  return static_cast<uint32_t>(value);
}

void JsonCursor::skip_string() {
  ++at_;
  while (at_ < text_.size() && text_[at_] != '"') at_ += text_[at_] == '\\' ? 2 : 1;
  if (at_ >= text_.size()) {
    at_ = text_.size();
    fail("a string without end");
  }
  ++at_;
}

std::string_view JsonCursor::value() {
  skip_space();
  const size_t begin = at_;
  int depth = 0;
  while (at_ < text_.size()) {
    const char c = text_[at_];
    if (c == '"') {
      skip_string();
    } else if (c == '{' || c == '[') {
      if (++depth > kDeepest) fail(str("values nested deeper than ", kDeepest));
      ++at_;
    } else if (depth == 0 && (c == ',' || c == '}' || c == ']')) {
      break;
    } else {
      if (c == '}' || c == ']') --depth;
      ++at_;
    }
    if (depth == 0 && (text_[at_ - 1] == '}' || text_[at_ - 1] == ']' || text_[at_ - 1] == '"')) break;
  }
  if (depth > 0) fail("a bracket without end");
  if (at_ == begin) fail("expected a value");
  return text_.substr(begin, at_ - begin);
}

void JsonCursor::end() {
  skip_space();
  if (at_ != text_.size()) fail("text behind the last bracket");
}

}  // namespace firstlight

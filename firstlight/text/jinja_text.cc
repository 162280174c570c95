// SPDX-License-Identifier: Apache-2.0
#include "firstlight/text/jinja_text.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

namespace firstlight::jinja {
namespace {

// Bytes of the sequence that begins at `at`, 0 if it is malformed (overlong forms, surrogates and > U+10FFFF included).
size_t sequence_length(std::string_view text, size_t at) noexcept {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const auto tail = [&](size_t i) { return (byte(i) & 0xc0u) == 0x80u; };
  const unsigned lead = byte(at);
  if (lead < 0x80) return 1;
  if (lead >= 0xc2 && lead <= 0xdf) return tail(at + 1) ? 2 : 0;
  if (lead >= 0xe0 && lead <= 0xef) {
    if (!tail(at + 1) || !tail(at + 2)) return 0;
    if (lead == 0xe0 && byte(at + 1) < 0xa0) return 0;
    if (lead == 0xed && byte(at + 1) > 0x9f) return 0;
    return 3;
  }
  if (lead >= 0xf0 && lead <= 0xf4) {
    if (!tail(at + 1) || !tail(at + 2) || !tail(at + 3)) return 0;
    if (lead == 0xf0 && byte(at + 1) < 0x90) return 0;
    if (lead == 0xf4 && byte(at + 1) > 0x8f) return 0;
    return 4;
  }
  return 0;
}

}  // namespace

char32_t next_char(std::string_view text, size_t& at) noexcept {
  const auto lead = static_cast<unsigned char>(text[at]);
  size_t length = lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  char32_t c = length == 1 ? lead : lead & (0xffu >> (length + 1));
  for (size_t i = 1; i < length && at + i < text.size(); ++i) {
    c = (c << 6) | (static_cast<unsigned char>(text[at + i]) & 0x3fu);
  }
  at = std::min(at + length, text.size());
  return c;
}

void append_char(std::string& out, char32_t c) {
  const auto put = [&](char32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xc0 | (c >> 6));
    put(0x80 | (c & 0x3f));
  } else if (c < 0x10000) {
    put(0xe0 | (c >> 12));
    put(0x80 | ((c >> 6) & 0x3f));
    put(0x80 | (c & 0x3f));
  } else {
    put(0xf0 | (c >> 18));
    put(0x80 | ((c >> 12) & 0x3f));
    put(0x80 | ((c >> 6) & 0x3f));
    put(0x80 | (c & 0x3f));
  }
}

bool is_valid_utf8(std::string_view bytes) noexcept {
  for (size_t at = 0; at < bytes.size();) {
    const size_t length = sequence_length(bytes, at);
    if (length == 0) return false;
    at += length;
  }
  return true;
}

std::string valid_utf8(std::string_view bytes) {
  if (is_valid_utf8(bytes)) return std::string(bytes);
  std::string out;
  for (size_t at = 0; at < bytes.size();) {
    const size_t length = sequence_length(bytes, at);
    if (length == 0) append_char(out, 0xfffd);
    out.append(bytes.substr(at, length));
    at += std::max<size_t>(length, 1);
  }
  return out;
}

bool is_space(char32_t c) noexcept {
  if (c < 0x80) return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20);
  return c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
         c == 0x202f || c == 0x205f || c == 0x3000;
}

int64_t count_chars(std::string_view text) noexcept {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xc0u) != 0x80u; });
}

size_t offset_of_char(std::string_view text, int64_t n) noexcept {
  size_t at = 0;
  for (; n > 0 && at < text.size(); --n) next_char(text, at);
  return at;
}

bool is_ascii(std::string_view text) noexcept {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

std::string_view strip(std::string_view text, std::optional<std::string_view> chars, bool left, bool right) {
  const auto strippable = [&](std::string_view piece) {
    if (chars) return chars->find(piece) != std::string_view::npos;  // whole sequences: UTF-8 synchronises itself
    size_t at = 0;
    return is_space(next_char(piece, at));
  };
  size_t begin = 0, end = text.size();
  while (left && begin < end) {
    size_t at = begin;
    next_char(text, at);
    if (!strippable(text.substr(begin, at - begin))) break;
    begin = at;
  }
  while (right && begin < end) {
    size_t at = end - 1;
    while (at > begin && (static_cast<unsigned char>(text[at]) & 0xc0u) == 0x80u) --at;
    if (!strippable(text.substr(at, end - at))) break;
    end = at;
  }
  return text.substr(begin, end - begin);
}

std::vector<std::string_view> split_space(std::string_view text, int64_t max_splits, bool from_right) {
  std::vector<std::string_view> words;
  std::string_view rest = strip(text, std::nullopt, true, true);
  while (!rest.empty()) {
    if (max_splits >= 0 && static_cast<int64_t>(words.size()) == max_splits) {
      // What is left keeps its own inner and far white space: only the near side was stripped.
      words.push_back(from_right ? strip(text.substr(0, static_cast<size_t>(rest.data() + rest.size() - text.data())),
                                         std::nullopt, false, true)
                                 : text.substr(static_cast<size_t>(rest.data() - text.data())));
      break;
    }
    size_t cut = rest.size(), at = 0;
    size_t last_space_end = 0;
    while (at < rest.size()) {
      const size_t begin = at;
      if (!is_space(next_char(rest, at))) continue;
      if (!from_right) {
        cut = begin;
        break;
      }
      last_space_end = at;
    }
    if (from_right) {
      words.push_back(rest.substr(last_space_end));
      rest = strip(rest.substr(0, last_space_end), std::nullopt, false, true);
    } else {
      words.push_back(rest.substr(0, cut));
      rest = strip(rest.substr(cut), std::nullopt, true, false);
    }
  }
  if (from_right) std::reverse(words.begin(), words.end());
  return words;
}

std::vector<std::string_view> split_at(std::string_view text, std::string_view separator, int64_t max_splits,
                                       bool from_right) {
  std::vector<std::string_view> pieces;
  while (max_splits < 0 || static_cast<int64_t>(pieces.size()) < max_splits) {
    const size_t at = from_right ? text.rfind(separator) : text.find(separator);
    if (at == std::string_view::npos) break;
    pieces.push_back(from_right ? text.substr(at + separator.size()) : text.substr(0, at));
    text = from_right ? text.substr(0, at) : text.substr(at + separator.size());
  }
  pieces.push_back(text);
  if (from_right) std::reverse(pieces.begin(), pieces.end());
  return pieces;
}

std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends) {
  std::vector<std::string_view> lines;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = at;
    const char32_t c = next_char(text, at);
    const bool breaks = (c >= 0x0a && c <= 0x0d) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 || c == 0x2029;
    if (!breaks) continue;
    if (c == '\r' && at < text.size() && text[at] == '\n') ++at;
    lines.push_back(text.substr(begin, (keep_ends ? at : end) - begin));
    begin = at;
  }
  if (begin < text.size()) lines.push_back(text.substr(begin));
  return lines;
}

std::string replace_all(std::string_view text, std::string_view from, std::string_view to, int64_t max_count) {
  std::string out;
  size_t at = 0;
  for (int64_t n = 0; max_count < 0 || n < max_count; ++n) {
    if (from.empty()) {
      out.append(to);
      if (at == text.size()) return out;
      const size_t begin = at;
      next_char(text, at);
      out.append(text.substr(begin, at - begin));
      continue;
    }
    const size_t found = text.find(from, at);
    if (found == std::string_view::npos) break;
    out.append(text.substr(at, found - at)).append(to);
    at = found + from.size();
  }
  return out.append(text.substr(at));
}

std::string python_repr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[64];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific).ptr;
  std::string text(buffer, end);  // "-1.25e+03"
  const size_t e = text.find('e');
  const int exponent = std::stoi(text.substr(e + 1));
  if (exponent < -4 || exponent >= 16) return text;  // to_chars, as Python, writes at least two digits of exponent
  const bool negative = text[0] == '-';
  std::string digits;
  for (const char c : text.substr(0, e)) {
    if (c >= '0' && c <= '9') digits.push_back(c);
  }
  std::string out = negative ? "-" : "";
  if (exponent < 0) return out + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  const size_t whole = static_cast<size_t>(exponent) + 1;
  if (digits.size() <= whole) return out + digits + std::string(whole - digits.size(), '0') + ".0";
  return out + digits.substr(0, whole) + "." + digits.substr(whole);
}

std::string python_repr(std::string_view text) {
  const bool has_single = text.find('\'') != std::string_view::npos;
  const char quote = has_single && text.find('"') == std::string_view::npos ? '"' : '\'';
  std::string out(1, quote);
  for (size_t at = 0; at < text.size();) {
    const char32_t c = next_char(text, at);
    // Controls, formats, separators and private use, the part of str.isprintable() that does not change with the
    // edition.
    const bool hidden = c < 0x20 || (c >= 0x7f && c <= 0xa0) || c == 0xad || (c >= 0x200b && c <= 0x200f) ||
                        (c >= 0x2028 && c <= 0x202e) || (c >= 0x2060 && c <= 0x206f) || c == 0xfeff ||
                        (c >= 0xe000 && c <= 0xf8ff) || (c > 0x7f && is_space(c)) || (c & 0xfffe) == 0xfffe ||
                        c >= 0xe0000;
    char hex[16];
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      out.push_back('\\');
      append_char(out, c);
    } else if (c == '\n' || c == '\r' || c == '\t') {
      out.append(c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t");
    } else if (hidden) {
      std::snprintf(hex, sizeof hex,
                    c < 0x100     ? "\\x%02x"
                    : c < 0x10000 ? "\\u%04x"
                                  : "\\U%08x",
                    static_cast<unsigned>(c));
      out.append(hex);
    } else {
      append_char(out, c);
    }
  }
  return out + quote;
}

namespace {
std::string json_quoted(std::string_view text, bool ascii) {
  std::string out = "\"";
  char hex[16];
  for (size_t at = 0; at < text.size();) {
    const char32_t c = next_char(text, at);
    switch (c) {
      case '"':
        out.append("\\\"");
        continue;
      case '\\':
        out.append("\\\\");
        continue;
      case '\n':
        out.append("\\n");
        continue;
      case '\r':
        out.append("\\r");
        continue;
      case '\t':
        out.append("\\t");
        continue;
      case '\f':
        out.append("\\f");
        continue;
      case '\b':
        out.append("\\b");
        continue;
      default:
        break;
    }
    if (c >= 0x10000 && ascii) {
      std::snprintf(hex, sizeof hex, "\\u%04x\\u%04x", 0xd800u + static_cast<unsigned>((c - 0x10000) >> 10),
                    0xdc00u + static_cast<unsigned>((c - 0x10000) & 0x3ff));
      out.append(hex);
    } else if (c < 0x20 || (ascii && c >= 0x7f)) {
      std::snprintf(hex, sizeof hex, "\\u%04x", static_cast<unsigned>(c));
      out.append(hex);
    } else {
      append_char(out, c);
    }
  }
  return out + '"';
}
}  // namespace

std::string json_string(std::string_view text) { return json_quoted(text, false); }
std::string json_ascii_string(std::string_view text) { return json_quoted(text, true); }

}  // namespace firstlight::jinja

// SPDX-License-Identifier: Apache-2.0
#include "firstlight/ckpt/source_json.h"

#include <array>
#include <charconv>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"

namespace firstlight {

namespace {

constexpr size_t kMostBytes = 16u << 20;  // the largest config.json seen has 50 kB
constexpr int kMostLevels = 64;

}  // namespace

nlohmann::json parse_json_strictly(std::string_view text, std::string_view what) {
  using json = nlohmann::json;
  if (text.size() > kMostBytes) {
    throw Error(ErrorKind::bad_input, str(what, ": ", text.size(), " bytes, expected at most ", kMostBytes));
  }
  if (text.find('\0') != text.npos) {  // nlohmann's lexer takes a NUL for the end of the text
    throw Error(ErrorKind::bad_input, str(what, ": not JSON: NUL byte at ", text.find('\0')));
  }
  std::vector<std::set<std::string>> keys;
  const auto check = [&](int depth, json::parse_event_t event, json& parsed) {
    if (depth > kMostLevels) {
      throw Error(ErrorKind::bad_input, str(what, ": nested deeper than ", kMostLevels, " levels"));
    }
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.back().insert(parsed.get_ref<const std::string&>()).second) {
      throw Error(ErrorKind::bad_input, str(what, ": duplicate key '", parsed.get_ref<const std::string&>(), "'"));
    }
    return true;
  };
  try {
    return json::parse(text.begin(), text.end(), check);
  } catch (const json::exception& error) {
    throw Error(ErrorKind::bad_input, str(what, ": not JSON: ", error.what()));
  }
}

void append_json_string(std::string& out, std::string_view text) {
  constexpr char kDigits[] = "0123456789abcdef";
  out += '"';
  size_t plain = 0;  // start of the run that needs no escape
  const auto flush = [&](size_t end) { out.append(text.substr(plain, end - plain)); };
  for (size_t i = 0; i < text.size();) {
    const auto c = static_cast<unsigned char>(text[i]);
    if (c >= 0x20 && c < 0x80 && c != '"' && c != '\\') {
      ++i;
      continue;
    }
    if (c >= 0x80) {
      const Utf8Step step = utf8_step(text.substr(i));
      const size_t n = step.size;
      if (!step.valid) {
        flush(i);
        out += "\xef\xbf\xbd";
        plain = ++i;
      } else {
        i += n;
      }
      continue;
    }
    flush(i);
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        out += "\\u00";
        out += kDigits[c >> 4];
        out += kDigits[c & 15];
    }
    plain = ++i;
  }
  flush(text.size());
  out += '"';
}

void JsonWriter::indent() {
  out_ += '\n';
  out_.append(static_cast<size_t>(depth_), ' ');
}
void JsonWriter::value_begins() {
  if (after_key_) {
    after_key_ = false;
    return;
  }
  if (depth_ == 0) return;
  if (!first_) out_ += ',';
  first_ = false;
  indent();
}
JsonWriter& JsonWriter::begin_object() {
  value_begins();
  out_ += '{';
  ++depth_;
  first_ = true;
  return *this;
}
JsonWriter& JsonWriter::end_object() {
  --depth_;
  if (!first_) indent();
  out_ += '}';
  first_ = false;
  return *this;
}
JsonWriter& JsonWriter::begin_array() {
  value_begins();
  out_ += '[';
  ++depth_;
  first_ = true;
  return *this;
}
JsonWriter& JsonWriter::end_array() {
  --depth_;
  if (!first_) indent();
  out_ += ']';
  first_ = false;
  return *this;
}
JsonWriter& JsonWriter::key(std::string_view name) {
  value_begins();
  append_json_string(out_, name);
  out_ += ": ";
  after_key_ = true;
  return *this;
}
JsonWriter& JsonWriter::string(std::string_view text) {
  value_begins();
  append_json_string(out_, text);
  return *this;
}
JsonWriter& JsonWriter::number(int64_t value) {
  value_begins();
  std::array<char, 24> text;
  out_.append(text.data(), std::to_chars(text.data(), text.data() + text.size(), value).ptr);
  return *this;
}
JsonWriter& JsonWriter::number(double value) {
  value_begins();
  std::array<char, 40> text;
  // Whole numbers of usual size without an exponent: rope_theta 500000.0, not 5e+05.
  const bool whole = std::abs(value) < 1e15 && value == std::trunc(value);
  const auto format = whole ? std::chars_format::fixed : std::chars_format::general;
  const auto end = std::to_chars(text.data(), text.data() + text.size(), value, format).ptr;
  const std::string_view digits(text.data(), static_cast<size_t>(end - text.data()));
  out_ += digits;
  if (digits.find_first_of(".e") == digits.npos) out_ += ".0";  // Python then reads a float, as the field is one
  return *this;
}
JsonWriter& JsonWriter::boolean(bool value) {
  value_begins();
  out_ += value ? "true" : "false";
  return *this;
}
JsonWriter& JsonWriter::null() {
  value_begins();
  out_ += "null";
  return *this;
}
JsonWriter& JsonWriter::raw(std::string_view json) {
  value_begins();
  out_ += json;
  return *this;
}
std::string JsonWriter::take() {
  out_ += '\n';
  depth_ = 0;
  first_ = true;
  return std::exchange(out_, {});
}

}  // namespace firstlight

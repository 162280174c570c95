// SPDX-License-Identifier: Apache-2.0
// JSON in and out for checkpoints: a strict reader for small files, and a writer fast enough for a tokenizer.json of
// megabytes.
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "firstlight/base/utf8.h"

namespace firstlight {

/// Parses a small JSON file (config.json, …) into a tree. Refuses (Error{bad_input} naming `what`) syntax errors,
/// duplicate keys, more than 64 levels and more than 16 MiB. `what` is the file as messages shall name it.
nlohmann::json parse_json_strictly(std::string_view text, std::string_view what);

/// `text` in double quotes with JSON's escapes. Bytes that are not UTF-8 become U+FFFD.
void append_json_string(std::string& out, std::string_view text);

/// Writes objects and arrays in order into one string, indented by one space a level.
class JsonWriter {
 public:
  JsonWriter& begin_object();
  JsonWriter& end_object();
  JsonWriter& begin_array();
  JsonWriter& end_array();
  JsonWriter& key(std::string_view name);
  JsonWriter& string(std::string_view text);
  JsonWriter& number(int64_t value);
  JsonWriter& number(int value) { return number(static_cast<int64_t>(value)); }
  JsonWriter& number(double value);  ///< shortest text that reads back as the same double; must be finite
  JsonWriter& boolean(bool value);
  JsonWriter& null();
  JsonWriter& raw(std::string_view json);  ///< a value that is JSON already
  /// Room for this many more bytes.
  void reserve(size_t bytes) { out_.reserve(out_.size() + bytes); }
  /// The document so far, ended by a line feed; the writer is empty afterwards.
  std::string take();

 private:
  void value_begins();
  void indent();
  std::string out_;
  int depth_ = 0;
  bool first_ = true;  // nothing stands yet in the innermost object or array
  bool after_key_ = false;
};

}  // namespace firstlight

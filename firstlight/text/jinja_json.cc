// SPDX-License-Identifier: Apache-2.0
// The filter tojson: Python's json.dumps.
#include <algorithm>
#include <cmath>

#include "firstlight/base/str.h"
#include "firstlight/text/jinja_filters.h"
#include "firstlight/text/jinja_text.h"

namespace firstlight::jinja {
namespace {

class JsonWriter {
 public:
  JsonWriter(Runtime& runtime, std::optional<std::string> indent, std::string item_separator, std::string key_separator,
             bool ascii, bool sorts)
      : runtime_(runtime),
        indent_(std::move(indent)),
        item_(std::move(item_separator)),
        key_(std::move(key_separator)),
        ascii_(ascii),
        sorts_(sorts) {}

  void write(const Value& value, int level) {
    runtime_.spend(1);
    int64_t integer = 0;
    if (const Text* text = as_text(value))
      put(quoted(*text->bytes));
    else if (get_if<None>(value))
      put("null");
    else if (const auto* boolean = get_if<bool>(value))
      put(*boolean ? "true" : "false");
    else if (is_integer(value, integer))
      put(std::to_string(integer));
    else if (const auto* real = get_if<double>(value))
      put(number(*real));
    else if (const Sequence* sequence = as_sequence(value); sequence && !is_view(*sequence))
      write_list(*sequence, level);
    else if (const Dict* dict = as_dict(value))
      write_dict(*dict, level);
    else
      runtime_.fail(str("tojson: a ", type_name(value), " is no JSON"));
  }
  std::string take() { return std::move(out_); }

 private:
  void put(std::string_view text) {
    runtime_.spend_bytes(text.size());
    out_ += text;
  }
  std::string quoted(const std::string& text) {
    runtime_.spend_bytes(text.size());
    return ascii_ ? json_ascii_string(text) : json_string(text);
  }
  static std::string number(double value) {
    if (std::isnan(value)) return "NaN";
    if (std::isinf(value)) return value < 0 ? "-Infinity" : "Infinity";
    return python_repr(value);
  }
  void new_line(int level) {
    if (!indent_) return;
    put("\n");
    for (int i = 0; i < level; ++i) put(*indent_);
  }
  void write_list(const Sequence& list, int level) {
    if (list.items.empty()) return put("[]");
    put("[");
    for (size_t i = 0; i < list.items.size(); ++i) {
      if (i != 0) put(item_);
      new_line(level + 1);
      write(list.items[i], level + 1);
    }
    new_line(level);
    put("]");
  }
  std::string key_text(const Value& key) {
    int64_t integer = 0;
    if (const Text* text = as_text(key)) return *text->bytes;
    if (get_if<None>(key)) return "null";
    if (const auto* boolean = get_if<bool>(key)) return *boolean ? "true" : "false";
    if (is_integer(key, integer)) return std::to_string(integer);
    if (const auto* real = get_if<double>(key)) return number(*real);
    runtime_.fail(str("tojson: a ", type_name(key), " as a key"));
  }
  void write_dict(const Dict& dict, int level) {
    if (dict.items.empty()) return put("{}");
    std::vector<const std::pair<Value, Value>*> entries;
    for (const auto& entry : dict.items) entries.push_back(&entry);
    if (sorts_) {
      std::stable_sort(entries.begin(), entries.end(),
                       [&](const auto* a, const auto* b) { return runtime_.compare(Op::less, a->first, b->first); });
    }
    put("{");
    for (size_t i = 0; i < entries.size(); ++i) {
      if (i != 0) put(item_);
      new_line(level + 1);
      put(quoted(key_text(entries[i]->first)));
      put(key_);
      write(entries[i]->second, level + 1);
    }
    new_line(level);
    put("}");
  }

  Runtime& runtime_;
  std::optional<std::string> indent_;
  std::string item_, key_;
  bool ascii_, sorts_;
  std::string out_;
};

}  // namespace

Value to_json_filter(Runtime& runtime, const Value& input, CallArguments& arguments) {
  const auto bound = bind(runtime, "tojson", arguments, {"ensure_ascii", "indent", "separators", "sort_keys"}, 0);
  std::optional<std::string> indent;
  if (bound[1] && as_text(*bound[1]))
    indent = *as_text(*bound[1])->bytes;
  else if (bound[1] && !get_if<None>(*bound[1])) {
    const int64_t width = std::max<int64_t>(runtime.expect_integer(*bound[1], "tojson"), 0);
    if (width > 1024) runtime.fail(str("tojson: an indent of ", width));
    indent = std::string(static_cast<size_t>(width), ' ');
  }
  std::string item_separator = indent ? "," : ", ", key_separator = ": ";
  if (bound[2] && !get_if<None>(*bound[2])) {
    const Values parts = runtime.iterate(*bound[2]);
    if (parts.size() != 2) runtime.fail("tojson: separators are two texts");
    item_separator = runtime.expect_text(parts[0], "tojson");
    key_separator = runtime.expect_text(parts[1], "tojson");
  }
  JsonWriter writer(runtime, std::move(indent), std::move(item_separator), std::move(key_separator),
                    bound[0] && truth(*bound[0]), bound[3] && truth(*bound[3]));
  writer.write(input, 0);
  return make_text(writer.take());
}

}  // namespace firstlight::jinja

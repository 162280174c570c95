// SPDX-License-Identifier: Apache-2.0
// The values of chat templates, with Python's meaning. Immutable but for namespaces; nesting is bounded, so that
// walking and destroying one never runs out of stack.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace firstlight::jinja {

struct Sequence;
struct Dict;
struct Generator;
struct Loop;
struct Method;
struct Macro;      // jinja_eval.h; owned by the rendering
struct Namespace;  // owned by the rendering

struct Undefined {
  std::shared_ptr<const std::string> name;  ///< for messages; may be null
};
struct None {};
struct Text {
  std::shared_ptr<const std::string> bytes;
  bool markup = false;  ///< went through |safe: what is added to it gets HTML-escaped
};
struct Range {
  int64_t start = 0, stop = 0, step = 1;
  int64_t size() const noexcept;
};
enum class Function { range, dict, namespace_, raise_exception, strftime_now };

using Value = std::variant<Undefined, None, bool, int64_t, double, Text, std::shared_ptr<const Range>,
                           std::shared_ptr<const Sequence>, std::shared_ptr<const Dict>, std::shared_ptr<Generator>,
                           std::shared_ptr<Loop>, std::shared_ptr<const Method>, Macro*, Namespace*, Function>;
using Values = std::vector<Value>;

struct Sequence {
  enum class Kind { list, tuple, dict_keys, dict_values, dict_items } kind = Kind::list;
  Values items;
  int depth = 1;
};
struct Dict {
  std::vector<std::pair<Value, Value>> items;  ///< in order of insertion; few, searched one by one
  int depth = 1;
};
/// What filters like map and select give: can be walked once.
struct Generator {
  Values items;
  size_t next = 0;
  int depth = 1;
};
struct Loop {
  std::shared_ptr<const Values> items;
  size_t index = 0;
  int loop_depth = 1;
  int depth = 1;
  Values changed;  ///< the arguments of the last loop.changed()
};
struct Method {
  Value self;
  std::string name;
  int depth = 1;
};
struct Namespace {
  std::vector<std::pair<std::string, Value>> attributes;
};

template <class T>
const T* get_if(const Value& value) noexcept {
  return std::get_if<T>(&value);
}
inline bool is_undefined(const Value& value) noexcept { return get_if<Undefined>(value) != nullptr; }
inline const Text* as_text(const Value& value) noexcept { return get_if<Text>(value); }
inline const Dict* as_dict(const Value& value) noexcept {
  const auto* dict = get_if<std::shared_ptr<const Dict>>(value);
  return dict ? dict->get() : nullptr;
}
inline const Sequence* as_sequence(const Value& value) noexcept {
  const auto* sequence = get_if<std::shared_ptr<const Sequence>>(value);
  return sequence ? sequence->get() : nullptr;
}
inline bool is_view(const Sequence& sequence) noexcept { return sequence.kind > Sequence::Kind::tuple; }
/// bool and int, as Python's int.
bool is_integer(const Value& value, int64_t& out) noexcept;
bool is_number(const Value& value, double& out) noexcept;

/// Python's name of the type, for messages.
std::string_view type_name(const Value& value) noexcept;
/// How deep the value nests; 0 for plain ones.
int depth_of(const Value& value) noexcept;
/// Python's bool().
bool truth(const Value& value) noexcept;

Value make_text(std::string text, bool markup = false);

}  // namespace firstlight::jinja

// SPDX-License-Identifier: Apache-2.0
#include "firstlight/text/jinja_value.h"

namespace firstlight::jinja {

int64_t Range::size() const noexcept {
  // In unsigned arithmetic: stop - start may not fit into int64_t.
  const uint64_t low = static_cast<uint64_t>(step > 0 ? start : stop),
                 high = static_cast<uint64_t>(step > 0 ? stop : start);
  if (step > 0 ? start >= stop : start <= stop) return 0;
  const uint64_t stride = step > 0 ? static_cast<uint64_t>(step) : -static_cast<uint64_t>(step);
  const uint64_t size = (high - low - 1) / stride + 1;
  return size > static_cast<uint64_t>(INT64_MAX) || size == 0 ? INT64_MAX : static_cast<int64_t>(size);
}

bool is_integer(const Value& value, int64_t& out) noexcept {
  if (const auto* integer = get_if<int64_t>(value))
    out = *integer;
  else if (const auto* boolean = get_if<bool>(value))
    out = *boolean ? 1 : 0;
  else
    return false;
  return true;
}

bool is_number(const Value& value, double& out) noexcept {
  int64_t integer = 0;
  if (is_integer(value, integer))
    out = static_cast<double>(integer);
  else if (const auto* real = get_if<double>(value))
    out = *real;
  else
    return false;
  return true;
}

std::string_view type_name(const Value& value) noexcept {
  if (const Sequence* sequence = as_sequence(value)) {
    static constexpr std::string_view kNames[] = {"list", "tuple", "dict_keys", "dict_values", "dict_items"};
    return kNames[static_cast<size_t>(sequence->kind)];
  }
  static constexpr std::string_view kNames[] = {"undefined", "None",   "bool",  "int",       "float",
                                                "str",       "range",  "list",  "dict",      "generator",
                                                "loop",      "method", "macro", "namespace", "function"};
  return kNames[value.index()];
}

int depth_of(const Value& value) noexcept {
  if (const Sequence* sequence = as_sequence(value)) return sequence->depth;
  if (const Dict* dict = as_dict(value)) return dict->depth;
  if (const auto* generator = get_if<std::shared_ptr<Generator>>(value)) return (*generator)->depth;
  if (const auto* loop = get_if<std::shared_ptr<Loop>>(value)) return (*loop)->depth;
  if (const auto* method = get_if<std::shared_ptr<const Method>>(value)) return (*method)->depth;
  return 0;
}

bool truth(const Value& value) noexcept {
  if (is_undefined(value) || get_if<None>(value)) return false;
  double number = 0;
  if (is_number(value, number)) return number != 0;
  if (const Text* text = as_text(value)) return !text->bytes->empty();
  if (const Sequence* sequence = as_sequence(value)) return !sequence->items.empty();
  if (const Dict* dict = as_dict(value)) return !dict->items.empty();
  if (const auto* range = get_if<std::shared_ptr<const Range>>(value)) return (*range)->size() != 0;
  if (const auto* loop = get_if<std::shared_ptr<Loop>>(value)) return !(*loop)->items->empty();
  return true;
}

Value make_text(std::string text, bool markup) {
  return Text{std::make_shared<const std::string>(std::move(text)), markup};
}

}  // namespace firstlight::jinja

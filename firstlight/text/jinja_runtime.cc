// SPDX-License-Identifier: Apache-2.0
#include "firstlight/text/jinja_runtime.h"

#include <algorithm>
#include <utility>

#include "firstlight/base/str.h"
#include "firstlight/text/jinja_methods.h"
#include "firstlight/text/jinja_text.h"

namespace firstlight::jinja {

void Runtime::fail(std::string_view what) const {
  throw Error(ErrorKind::bad_input, str("chat template line ", line, ": ", what));
}

void Runtime::fail_unsupported(std::string_view what) const {
  throw Error(ErrorKind::unsupported, str("chat template line ", line, ": ", what, " is not supported"));
}

void Runtime::fail_undefined(const Value& value) const {
  const auto* undefined = get_if<Undefined>(value);
  fail(undefined && undefined->name ? str("'", *undefined->name, "' is undefined") : "a value is undefined");
}

void Runtime::spend(int64_t steps) {
  steps_ += steps;
  if (steps_ > limits_.max_steps) fail(str("more than ", limits_.max_steps, " steps"));
}

void Runtime::spend_bytes(size_t n) {
  if (n > limits_.max_output_bytes || static_cast<int64_t>(n) > bytes_left_) {
    fail(str("makes too much text: more than ", limits_.max_output_bytes, " bytes at once or ",
             limits_.max_output_bytes, " x 8 in all"));
  }
  bytes_left_ -= static_cast<int64_t>(n);
}

// Expressions, statements and macro calls together; each of the three is allowed max_depth for itself and some more.
Runtime::Level::Level(Runtime& runtime) : runtime_(runtime) {
  if (runtime_.depth_ >= 4 * runtime_.limits_.max_depth) runtime_.fail("nested too deeply");
  ++runtime_.depth_;
}

Value Runtime::text(std::string bytes, bool markup) {
  spend_bytes(bytes.size());
  return make_text(std::move(bytes), markup);
}

int Runtime::depth_above(const Values& items) const {
  int deepest = 0;
  for (const Value& item : items) deepest = std::max(deepest, depth_of(item));
  if (deepest >= limits_.max_depth) fail(str("values nested deeper than ", limits_.max_depth));
  return deepest + 1;
}

Value Runtime::sequence(Values items, Sequence::Kind kind) {
  spend(1 + static_cast<int64_t>(items.size()));
  auto out = std::make_shared<Sequence>();
  out->kind = kind;
  out->depth = depth_above(items);
  out->items = std::move(items);
  return std::shared_ptr<const Sequence>(std::move(out));
}

Value Runtime::generator(Values items) {
  spend(1 + static_cast<int64_t>(items.size()));
  auto out = std::make_shared<Generator>();
  out->depth = depth_above(items);
  out->items = std::move(items);
  return out;
}

Value Runtime::dict(std::vector<std::pair<Value, Value>> items) {
  auto out = std::make_shared<Dict>();
  Values values;
  for (auto& [key, value] : items) {
    spend(1);
    expect_hashable(key);
    values.push_back(key);
    values.push_back(value);
    if (Value* found = find(*out, key))
      *found = std::move(value);
    else
      out->items.emplace_back(std::move(key), std::move(value));
  }
  out->depth = depth_above(values);
  return std::shared_ptr<const Dict>(std::move(out));
}

void Runtime::expect_hashable(const Value& key) const {
  const Sequence* sequence = as_sequence(key);
  if (as_dict(key) || (sequence && sequence->kind != Sequence::Kind::tuple))
    fail(str("a ", type_name(key), " cannot be a key"));
}

Value* Runtime::find(const Dict& dict, const Value& key) {
  spend(static_cast<int64_t>(dict.items.size() / 8));
  for (const auto& entry : dict.items) {
    if (equal(entry.first, key)) return const_cast<Value*>(&entry.second);
  }
  return nullptr;
}

const std::string& Runtime::expect_text(const Value& value, std::string_view what) const {
  if (const Text* found = as_text(value)) return *found->bytes;
  if (is_undefined(value)) fail_undefined(value);
  fail(str(what, ": found a ", type_name(value), ", expected a str"));
}

int64_t Runtime::expect_integer(const Value& value, std::string_view what) const {
  int64_t out = 0;
  if (is_integer(value, out)) return out;
  if (is_undefined(value)) fail_undefined(value);
  fail(str(what, ": found a ", type_name(value), ", expected an int"));
}

std::string Runtime::repr_items(const Values& items) {
  std::string out;
  for (const Value& item : items) {
    if (!out.empty()) out += ", ";
    out += repr(item);
    spend_bytes(16);
  }
  return out;
}

std::string Runtime::repr(const Value& value) {
  spend(1);
  if (const Text* found = as_text(value)) {
    spend_bytes(found->bytes->size());
    return found->markup ? "Markup(" + python_repr(*found->bytes) + ")" : python_repr(*found->bytes);
  }
  if (is_undefined(value)) return "Undefined";
  if (const Sequence* sequence = as_sequence(value)) {
    const std::string items = repr_items(sequence->items);
    if (sequence->kind == Sequence::Kind::list) return "[" + items + "]";
    if (sequence->kind == Sequence::Kind::tuple)
      return sequence->items.size() == 1 ? "(" + items + ",)" : "(" + items + ")";
    return str(type_name(value), "([", items, "])");
  }
  if (const Dict* found = as_dict(value)) {
    std::string out = "{";
    for (const auto& [key, entry] : found->items) {
      if (out.size() > 1) out += ", ";
      out += repr(key) + ": " + repr(entry);
    }
    return out + "}";
  }
  return to_text(value);
}

std::string Runtime::to_text(const Value& value) {
  if (const Text* found = as_text(value)) return *found->bytes;
  if (is_undefined(value)) return "";
  if (get_if<None>(value)) return "None";
  if (const auto* boolean = get_if<bool>(value)) return *boolean ? "True" : "False";
  if (const auto* integer = get_if<int64_t>(value)) return std::to_string(*integer);
  if (const auto* real = get_if<double>(value)) return python_repr(*real);
  if (const auto* range = get_if<std::shared_ptr<const Range>>(value)) {
    const Range& r = **range;
    return r.step == 1 ? str("range(", r.start, ", ", r.stop, ")")
                       : str("range(", r.start, ", ", r.stop, ", ", r.step, ")");
  }
  if (as_sequence(value) || as_dict(value)) return repr(value);
  fail_unsupported(str("printing a ", type_name(value)));
}

bool Runtime::is_iterable(const Value& value) const noexcept {
  return is_undefined(value) || as_text(value) || as_sequence(value) || as_dict(value) ||
         get_if<std::shared_ptr<const Range>>(value) || get_if<std::shared_ptr<Generator>>(value) ||
         get_if<std::shared_ptr<Loop>>(value);
}

Values Runtime::iterate(const Value& value) {
  if (is_undefined(value)) return {};
  Values out;
  if (const Sequence* sequence = as_sequence(value)) {
    spend(static_cast<int64_t>(sequence->items.size()) / 4);
    return sequence->items;
  }
  if (const Dict* found = as_dict(value)) {
    for (const auto& entry : found->items) out.push_back(entry.first);
  } else if (const Text* found = as_text(value)) {
    spend(count_chars(*found->bytes));
    for (size_t at = 0; at < found->bytes->size();) {
      const size_t begin = at;
      next_char(*found->bytes, at);
      out.push_back(make_text(found->bytes->substr(begin, at - begin)));
    }
  } else if (const auto* range = get_if<std::shared_ptr<const Range>>(value)) {
    const int64_t n = (*range)->size();
    spend(n);
    for (int64_t i = 0; i < n; ++i) out.push_back((*range)->start + i * (*range)->step);
  } else if (const auto* walked = get_if<std::shared_ptr<Generator>>(value)) {
    Generator& g = **walked;
    spend(static_cast<int64_t>(g.items.size() - g.next) / 4);
    out.assign(g.items.begin() + static_cast<std::ptrdiff_t>(g.next), g.items.end());
    g.next = g.items.size();
  } else if (get_if<std::shared_ptr<Loop>>(value)) {
    fail_unsupported("walking a loop object");
  } else {
    fail(str("a ", type_name(value), " cannot be iterated"));
  }
  return out;
}

int64_t Runtime::length(const Value& value) {
  if (is_undefined(value)) return 0;
  if (const Text* found = as_text(value)) {
    spend(static_cast<int64_t>(found->bytes->size() / 1024));
    return count_chars(*found->bytes);
  }
  if (const Sequence* sequence = as_sequence(value)) return static_cast<int64_t>(sequence->items.size());
  if (const Dict* found = as_dict(value)) return static_cast<int64_t>(found->items.size());
  if (const auto* range = get_if<std::shared_ptr<const Range>>(value)) return (*range)->size();
  if (const auto* loop = get_if<std::shared_ptr<Loop>>(value)) return static_cast<int64_t>((*loop)->items->size());
  fail(str("a ", type_name(value), " has no length"));
}

Value Runtime::attribute(const Value& of, std::string_view name) {
  spend(1);
  if (is_undefined(of)) fail_undefined(of);
  if (const auto* found = get_if<Namespace*>(of)) {
    for (const auto& [key, value] : (*found)->attributes) {
      if (key == name) return value;
    }
  } else if (const auto* loop = get_if<std::shared_ptr<Loop>>(of)) {
    if (auto value = loop_attribute(*this, *loop, name)) return *value;
  } else if (!name.starts_with("_")) {
    if (has_method(*this, of, name)) {
      return std::make_shared<const Method>(Method{of, std::string(name), depth_above({of})});
    }
    if (const Dict* found_dict = as_dict(of)) {
      if (const Value* value = find(*found_dict, make_text(std::string(name)))) return *value;
    }
  } else if (const Dict* found_dict = as_dict(of)) {
    if (const Value* value = find(*found_dict, make_text(std::string(name)))) return *value;
  }
  return Undefined{std::make_shared<const std::string>(name.substr(0, 100))};
}

Value Runtime::item(const Value& of, const Value& index) {
  spend(1);
  if (is_undefined(of)) fail_undefined(of);
  int64_t at = 0;
  if (const Dict* found = as_dict(of)) {
    if (const Value* value = find(*found, index)) return *value;
  } else if (is_integer(index, at)) {
    const Sequence* sequence = as_sequence(of);
    const bool indexable = as_text(of) || get_if<std::shared_ptr<const Range>>(of) || (sequence && !is_view(*sequence));
    const int64_t n = indexable ? length(of) : 0;
    if (at < 0 && at >= -n) at += n;
    if (at >= 0 && at < n) {
      if (sequence) return sequence->items[static_cast<size_t>(at)];
      if (const auto* range = get_if<std::shared_ptr<const Range>>(of)) return (*range)->start + at * (*range)->step;
      const std::string& bytes = *as_text(of)->bytes;
      size_t end = offset_of_char(bytes, at);
      const size_t begin = end;
      next_char(bytes, end);
      return make_text(bytes.substr(begin, end - begin));
    }
  }
  if (const Text* name = as_text(index)) {
    if (!as_dict(of)) return attribute(of, *name->bytes);
    if (!name->bytes->starts_with("_") && has_method(*this, of, *name->bytes)) return attribute(of, *name->bytes);
    return Undefined{name->bytes};
  }
  return Undefined{};
}

Value Runtime::slice(const Value& of, const Value& start, const Value& stop, const Value& step) {
  const Sequence* sequence = as_sequence(of);
  const auto* range = get_if<std::shared_ptr<const Range>>(of);
  if (is_undefined(of)) fail_undefined(of);
  if (!as_text(of) && !range && !(sequence && !is_view(*sequence))) fail(str("a ", type_name(of), " cannot be sliced"));
  const int64_t n = length(of);
  const int64_t stride = get_if<None>(step) ? 1 : expect_integer(step, "slice");
  if (stride == 0) fail("a slice's step is 0");
  const auto bound = [&](const Value& value, int64_t fallback) {
    if (get_if<None>(value)) return fallback;
    int64_t at = expect_integer(value, "slice");
    if (at < 0)
      at = at < -n ? -1 : at + n;
    else if (at > n)
      at = n;
    // A bound before the beginning: nothing before it for a step forward, "-1" for a step back.
    if (stride > 0) return std::max<int64_t>(at, 0);
    return std::min(at, n - 1);
  };
  const int64_t from = bound(start, stride > 0 ? 0 : n - 1), to = bound(stop, stride > 0 ? n : -1);
  const int64_t size = Range{from, to, stride}.size();
  if (range) {
    const Range& r = **range;
    Range out;
    const auto place = [&](int64_t at, int64_t& result) {  // start + at * step
      return __builtin_mul_overflow(at, r.step, &result) || __builtin_add_overflow(r.start, result, &result);
    };
    if (place(from, out.start) || place(to, out.stop) || __builtin_mul_overflow(r.step, stride, &out.step)) {
      fail_unsupported("an integer beyond 64 bits");
    }
    return std::make_shared<const Range>(out);
  }
  if (const Text* found = as_text(of)) {
    const std::string& bytes = *found->bytes;
    if (stride == 1) {
      const size_t begin = offset_of_char(bytes, from);
      const std::string_view rest = std::string_view(bytes).substr(begin);
      return text(std::string(rest.substr(0, offset_of_char(rest, size))));
    }
    spend_bytes(bytes.size());
    std::vector<size_t> offsets;  // of each character, and the end
    for (size_t at = 0; at < bytes.size(); next_char(bytes, at)) offsets.push_back(at);
    offsets.push_back(bytes.size());
    std::string out;
    for (int64_t i = 0; i < size; ++i) {
      const size_t at = static_cast<size_t>(from + i * stride);
      out.append(bytes, offsets[at], offsets[at + 1] - offsets[at]);
    }
    return text(std::move(out));
  }
  Values items;
  for (int64_t i = 0; i < size; ++i) items.push_back(sequence->items[static_cast<size_t>(from + i * stride)]);
  return this->sequence(std::move(items), sequence->kind);
}

std::vector<std::optional<Value>> bind(const Runtime& runtime, std::string_view function, CallArguments& arguments,
                                       const std::vector<std::string_view>& names, size_t n_required) {
  if (arguments.positional.size() > names.size()) {
    runtime.fail(str(function, "(): ", arguments.positional.size(), " arguments, expected at most ", names.size()));
  }
  std::vector<std::optional<Value>> out(names.size());
  for (size_t i = 0; i < arguments.positional.size(); ++i) out[i] = std::move(arguments.positional[i]);
  for (auto& [name, value] : arguments.keyword) {
    const auto found = std::find(names.begin(), names.end(), name);
    if (found == names.end()) runtime.fail(str(function, "(): unknown argument '", name, "'"));
    auto& slot = out[static_cast<size_t>(found - names.begin())];
    if (slot) runtime.fail(str(function, "(): argument '", name, "' given twice"));
    slot = std::move(value);
  }
  for (size_t i = 0; i < n_required; ++i) {
    if (!out[i]) runtime.fail(str(function, "(): argument '", names[i], "' is missing"));
  }
  return out;
}

}  // namespace firstlight::jinja

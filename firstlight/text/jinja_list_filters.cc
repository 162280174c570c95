// SPDX-License-Identifier: Apache-2.0
// Filters that walk a sequence. map, select and their kin are evaluated at once, and can be walked once, as in Jinja2.
#include <algorithm>
#include <map>

#include "firstlight/base/str.h"
#include "firstlight/text/jinja_filters.h"
#include "firstlight/text/jinja_text.h"

namespace firstlight::jinja {
namespace {

using Bound = std::vector<std::optional<Value>>;

// "a.b.0" → the steps of a look-up; an int is one step, none is no step.
Values attribute_path(Runtime& runtime, const std::optional<Value>& attribute) {
  if (!attribute || get_if<None>(*attribute)) return {};
  int64_t integer = 0;
  if (is_integer(*attribute, integer)) return {integer};
  Values path;
  for (const std::string_view part : split_at(runtime.expect_text(*attribute, "an attribute's name"), ".", -1, false)) {
    const bool digits = !part.empty() && part.size() < 10 &&
                        std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (digits)
      path.push_back(int64_t{std::stoi(std::string(part))});
    else
      path.push_back(make_text(std::string(part)));
  }
  return path;
}

Value look_up(Runtime& runtime, Value value, const Values& path, const std::optional<Value>& fallback = std::nullopt) {
  for (const Value& step : path) {
    value = runtime.item(value, step);
    if (fallback && !get_if<None>(*fallback) && is_undefined(value)) value = *fallback;
  }
  return value;
}

Value folded(Runtime& runtime, Value value, bool case_sensitive) {
  const Text* text = as_text(value);
  if (case_sensitive || !text) return value;
  runtime.spend_bytes(text->bytes->size());
  auto lower = to_lower(*text->bytes);
  if (!lower) runtime.fail_unsupported("the lower case of the Greek capital sigma");
  return make_text(std::move(*lower));
}

Value list(Runtime& runtime, const Value& input, CallArguments& arguments) {
  bind(runtime, "list", arguments, {}, 0);
  return runtime.sequence(runtime.iterate(input));
}

Value first(Runtime& runtime, const Value& input, CallArguments& arguments) {
  bind(runtime, "first", arguments, {}, 0);
  if (const auto* generator = get_if<std::shared_ptr<Generator>>(input)) {
    Generator& g = **generator;
    return g.next < g.items.size() ? g.items[g.next++] : Value(Undefined{});
  }
  if (as_text(input) || get_if<std::shared_ptr<const Range>>(input)) return runtime.item(input, int64_t{0});
  const Values items = runtime.iterate(input);
  return items.empty() ? Value(Undefined{}) : items.front();
}

Value last(Runtime& runtime, const Value& input, CallArguments& arguments) {
  bind(runtime, "last", arguments, {}, 0);
  if (as_text(input) || get_if<std::shared_ptr<const Range>>(input)) return runtime.item(input, int64_t{-1});
  if (get_if<std::shared_ptr<Generator>>(input))
    runtime.fail("last: a generator has no end that can be looked at; use |list first");
  const Values items = runtime.iterate(input);
  return items.empty() ? Value(Undefined{}) : items.back();
}

Value reverse(Runtime& runtime, const Value& input, CallArguments& arguments) {
  bind(runtime, "reverse", arguments, {}, 0);
  if (as_text(input)) return runtime.slice(input, None{}, None{}, int64_t{-1});
  const bool was_generator = get_if<std::shared_ptr<Generator>>(input) != nullptr;
  Values items = runtime.iterate(input);
  std::reverse(items.begin(), items.end());
  return was_generator ? runtime.sequence(std::move(items)) : runtime.generator(std::move(items));
}

Value join(Runtime& runtime, const Value& input, CallArguments& arguments) {
  const Bound bound = bind(runtime, "join", arguments, {"d", "attribute"}, 0);
  const std::string separator = bound[0] ? runtime.to_text(*bound[0]) : "";
  const Values path = attribute_path(runtime, bound[1]);
  std::string out;
  bool first_item = true;
  for (const Value& item : runtime.iterate(input)) {
    if (!first_item) out += separator;
    first_item = false;
    const std::string piece = runtime.to_text(look_up(runtime, item, path));
    runtime.spend_bytes(piece.size() + separator.size());
    out += piece;
  }
  return make_text(std::move(out));
}

Value items(Runtime& runtime, const Value& input, CallArguments& arguments) {
  bind(runtime, "items", arguments, {}, 0);
  Values out;
  if (!is_undefined(input)) {
    const Dict* dict = as_dict(input);
    if (!dict) runtime.fail(str("items: found a ", type_name(input), ", expected a dict"));
    for (const auto& [key, value] : dict->items) out.push_back(runtime.sequence({key, value}, Sequence::Kind::tuple));
  }
  return runtime.generator(std::move(out));
}

Value map_filter(Runtime& runtime, const Value& input, CallArguments& arguments) {
  Values out;
  if (!truth(input)) return runtime.generator({});
  const bool by_attribute =
      arguments.positional.empty() && std::any_of(arguments.keyword.begin(), arguments.keyword.end(),
                                                  [](const auto& each) { return each.first == "attribute"; });
  if (by_attribute) {
    const Bound bound = bind(runtime, "map", arguments, {"attribute", "default"}, 1);
    const Values path = attribute_path(runtime, bound[0]);
    for (const Value& item : runtime.iterate(input)) out.push_back(look_up(runtime, item, path, bound[1]));
    return runtime.generator(std::move(out));
  }
  if (arguments.positional.empty()) runtime.fail("map: expected a filter's name or attribute=…");
  const std::string name = runtime.expect_text(arguments.positional[0], "map");
  arguments.positional.erase(arguments.positional.begin());
  for (const Value& item : runtime.iterate(input)) out.push_back(call_filter(runtime, name, item, arguments));
  return runtime.generator(std::move(out));
}

Value choose(Runtime& runtime, const Value& input, CallArguments& arguments, bool by_attribute, bool wanted) {
  if (!truth(input)) return runtime.generator({});
  Values& positional = arguments.positional;
  Values path;
  if (by_attribute) {
    if (positional.empty()) runtime.fail("selectattr: expected an attribute's name");
    path = attribute_path(runtime, positional.front());
    positional.erase(positional.begin());
  }
  std::optional<std::string> test;
  if (!positional.empty()) {
    test = runtime.expect_text(positional.front(), "select");
    positional.erase(positional.begin());
  }
  Values out;
  for (const Value& item : runtime.iterate(input)) {
    runtime.spend(1);
    const Value subject = look_up(runtime, item, path);
    const bool holds = test ? call_test(runtime, *test, subject, arguments) : truth(subject);
    if (holds == wanted) out.push_back(item);
  }
  return runtime.generator(std::move(out));
}

Value select(Runtime& r, const Value& v, CallArguments& a) { return choose(r, v, a, false, true); }
Value reject(Runtime& r, const Value& v, CallArguments& a) { return choose(r, v, a, false, false); }
Value select_attribute(Runtime& r, const Value& v, CallArguments& a) { return choose(r, v, a, true, true); }
Value reject_attribute(Runtime& r, const Value& v, CallArguments& a) { return choose(r, v, a, true, false); }

using Keyed = std::pair<Value, Value>;  // sort key, item

Value sorted(Runtime& runtime, std::vector<Keyed> keyed, bool reversed) {
  // Equal items keep their order in both directions. A merge sort stays in bounds even where NaN makes the order
  // inconsistent.
  std::stable_sort(keyed.begin(), keyed.end(), [&](const Keyed& a, const Keyed& b) {
    runtime.spend(1);
    return reversed ? runtime.compare(Op::less, b.first, a.first) : runtime.compare(Op::less, a.first, b.first);
  });
  Values out;
  for (Keyed& each : keyed) out.push_back(std::move(each.second));
  return runtime.sequence(std::move(out));
}

Value sort(Runtime& runtime, const Value& input, CallArguments& arguments) {
  const Bound bound = bind(runtime, "sort", arguments, {"reverse", "case_sensitive", "attribute"}, 0);
  const bool case_sensitive = bound[1] && truth(*bound[1]);
  if (bound[2] && as_text(*bound[2]) && as_text(*bound[2])->bytes->find(',') != std::string::npos) {
    runtime.fail_unsupported("sort by several attributes");
  }
  const Values path = attribute_path(runtime, bound[2]);
  std::vector<Keyed> keyed;
  for (const Value& item : runtime.iterate(input)) {
    keyed.emplace_back(folded(runtime, look_up(runtime, item, path), case_sensitive), item);
  }
  return sorted(runtime, std::move(keyed), bound[0] && truth(*bound[0]));
}

Value dictsort(Runtime& runtime, const Value& input, CallArguments& arguments) {
  const Bound bound = bind(runtime, "dictsort", arguments, {"case_sensitive", "by", "reverse"}, 0);
  const Dict* dict = as_dict(input);
  if (!dict) runtime.fail(str("dictsort: found a ", type_name(input), ", expected a dict"));
  const std::string by = bound[1] ? runtime.expect_text(*bound[1], "dictsort") : "key";
  if (by != "key" && by != "value") runtime.fail("dictsort: by is 'key' or 'value'");
  std::vector<Keyed> keyed;
  for (const auto& [key, value] : dict->items) {
    keyed.emplace_back(folded(runtime, by == "key" ? key : value, bound[0] && truth(*bound[0])),
                       runtime.sequence({key, value}, Sequence::Kind::tuple));
  }
  return sorted(runtime, std::move(keyed), bound[2] && truth(*bound[2]));
}

Value extreme(Runtime& runtime, const Value& input, CallArguments& arguments, Op better) {
  const Bound bound = bind(runtime, "min or max", arguments, {"case_sensitive", "attribute"}, 0);
  const bool case_sensitive = bound[0] && truth(*bound[0]);
  const Values path = attribute_path(runtime, bound[1]);
  Value best = Undefined{}, best_key;
  bool first_item = true;
  for (const Value& item : runtime.iterate(input)) {
    Value key = folded(runtime, look_up(runtime, item, path), case_sensitive);
    if (first_item || runtime.compare(better, key, best_key)) {
      best = item;
      best_key = std::move(key);
    }
    first_item = false;
  }
  return best;
}

Value min(Runtime& r, const Value& v, CallArguments& a) { return extreme(r, v, a, Op::less); }
Value max(Runtime& r, const Value& v, CallArguments& a) { return extreme(r, v, a, Op::greater); }

Value sum(Runtime& runtime, const Value& input, CallArguments& arguments) {
  const Bound bound = bind(runtime, "sum", arguments, {"attribute", "start"}, 0);
  const Values path = attribute_path(runtime, bound[0]);
  Value total = bound[1] ? *bound[1] : Value(int64_t{0});
  if (as_text(total)) runtime.fail("sum: cannot add up texts; use join");
  for (const Value& item : runtime.iterate(input))
    total = runtime.arithmetic(Op::add, total, look_up(runtime, item, path));
  return total;
}

Value unique(Runtime& runtime, const Value& input, CallArguments& arguments) {
  const Bound bound = bind(runtime, "unique", arguments, {"case_sensitive", "attribute"}, 0);
  const Values path = attribute_path(runtime, bound[1]);
  Values out, seen;
  for (const Value& item : runtime.iterate(input)) {
    Value key = folded(runtime, look_up(runtime, item, path), bound[0] && truth(*bound[0]));
    if (as_dict(key) || (as_sequence(key) && as_sequence(key)->kind != Sequence::Kind::tuple)) {
      runtime.fail(str("unique: a ", type_name(key), " cannot be told apart"));
    }
    runtime.spend(1 + static_cast<int64_t>(seen.size() / 8));
    if (std::any_of(seen.begin(), seen.end(), [&](const Value& each) { return runtime.equal(each, key); })) continue;
    seen.push_back(std::move(key));
    out.push_back(item);
  }
  return runtime.generator(std::move(out));
}

}  // namespace

Filter find_list_filter(std::string_view name) {
  static const std::map<std::string_view, Filter> kFilters{{"dictsort", dictsort},
                                                           {"first", first},
                                                           {"items", items},
                                                           {"join", join},
                                                           {"last", last},
                                                           {"list", list},
                                                           {"map", map_filter},
                                                           {"max", max},
                                                           {"min", min},
                                                           {"reject", reject},
                                                           {"rejectattr", reject_attribute},
                                                           {"reverse", reverse},
                                                           {"select", select},
                                                           {"selectattr", select_attribute},
                                                           {"sort", sort},
                                                           {"sum", sum},
                                                           {"unique", unique}};
  const auto found = kFilters.find(name);
  return found == kFilters.end() ? nullptr : found->second;
}

}  // namespace firstlight::jinja

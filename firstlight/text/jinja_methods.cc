// SPDX-License-Identifier: Apache-2.0
#include "firstlight/text/jinja_methods.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "firstlight/base/str.h"
#include "firstlight/text/jinja_text.h"

namespace firstlight::jinja {
namespace {

using Bound = std::vector<std::optional<Value>>;
using TextMethod = Value (*)(Runtime&, const std::string&, std::string_view name, CallArguments&);

bool given(const std::optional<Value>& value) { return value && !get_if<None>(*value); }

Value texts(Runtime& runtime, const std::vector<std::string_view>& pieces, Sequence::Kind kind = Sequence::Kind::list) {
  Values items;
  runtime.spend(static_cast<int64_t>(pieces.size()));
  for (const std::string_view piece : pieces) items.push_back(runtime.text(std::string(piece)));
  return runtime.sequence(std::move(items), kind);
}

Value strip_method(Runtime& runtime, const std::string& self, std::string_view name, CallArguments& arguments) {
  const Bound bound = bind(runtime, name, arguments, {"chars"}, 0);
  std::optional<std::string_view> chars;
  if (given(bound[0])) chars = runtime.expect_text(*bound[0], name);
  return runtime.text(std::string(strip(self, chars, name != "rstrip", name != "lstrip")));
}

// Pays for the pieces of a split before they are made: each costs an object, however small the text between.
void spend_pieces(Runtime& runtime, std::string_view text, std::string_view separator) {
  int64_t n = static_cast<int64_t>(text.size() / 1024);
  if (!separator.empty()) {
    for (size_t at = 0; (at = text.find(separator, at)) != std::string_view::npos; at += separator.size()) ++n;
  } else {  // white space, line ends among it
    for (size_t at = 0; at < text.size();) n += is_space(next_char(text, at)) ? 1 : 0;
  }
  runtime.spend(n);
}

Value split_method(Runtime& runtime, const std::string& self, std::string_view name, CallArguments& arguments) {
  const Bound bound = bind(runtime, name, arguments, {"sep", "maxsplit"}, 0);
  const int64_t max_splits = bound[1] ? runtime.expect_integer(*bound[1], name) : -1;
  const bool from_right = name == "rsplit";
  if (!given(bound[0])) {
    spend_pieces(runtime, self, "");
    return texts(runtime, split_space(self, max_splits, from_right));
  }
  const std::string& separator = runtime.expect_text(*bound[0], name);
  if (separator.empty()) runtime.fail("split(): the separator is empty");
  spend_pieces(runtime, self, separator);
  return texts(runtime, split_at(self, separator, max_splits, from_right));
}

Value split_lines_method(Runtime& runtime, const std::string& self, std::string_view name, CallArguments& arguments) {
  const Bound bound = bind(runtime, name, arguments, {"keepends"}, 0);
  spend_pieces(runtime, self, "");
  return texts(runtime, split_lines(self, bound[0] && truth(*bound[0])));
}

// The part of a text between optional start and end positions, and where it begins in characters; null for a start
// behind the end.
std::optional<std::string_view> window(Runtime& runtime, const std::string& self, const std::optional<Value>& start,
                                       const std::optional<Value>& end, int64_t& first) {
  first = 0;
  if (!given(start) && !given(end)) return self;
  const int64_t n = runtime.length(make_text(self));
  const auto position = [&](const std::optional<Value>& value, int64_t fallback) {
    if (!given(value)) return fallback;
    int64_t at = runtime.expect_integer(*value, "a position");
    if (at < 0) at = at < -n ? 0 : at + n;
    return at;
  };
  first = position(start, 0);
  const int64_t last = std::min(position(end, n), n);
  if (first > last) return std::nullopt;
  const size_t begin = offset_of_char(self, first);
  const std::string_view rest = std::string_view(self).substr(begin);
  return rest.substr(0, offset_of_char(rest, last - first));
}

Value affix_method(Runtime& runtime, const std::string& self, std::string_view name, CallArguments& arguments) {
  const Bound bound = bind(runtime, name, arguments, {"prefix", "start", "end"}, 1);
  int64_t first = 0;
  const auto text = window(runtime, self, bound[1], bound[2], first);
  const auto matches = [&](const Value& value) {
    const std::string& affix = runtime.expect_text(value, name);
    if (!text) return false;
    return name == "startswith" ? text->starts_with(affix) : text->ends_with(affix);
  };
  if (const Sequence* several = as_sequence(*bound[0]); several && several->kind == Sequence::Kind::tuple) {
    return std::any_of(several->items.begin(), several->items.end(), matches);
  }
  return matches(*bound[0]);
}

Value find_method(Runtime& runtime, const std::string& self, std::string_view name, CallArguments& arguments) {
  const Bound bound = bind(runtime, name, arguments, {"sub", "start", "end"}, 1);
  const std::string& needle = runtime.expect_text(*bound[0], name);
  runtime.spend(static_cast<int64_t>(self.size() / 256));
  int64_t first = 0;
  const auto text = window(runtime, self, bound[1], bound[2], first);
  if (name == "count") {
    if (!text) return int64_t{0};
    if (needle.empty()) return count_chars(*text) + 1;
    int64_t n = 0;
    for (size_t at = 0; (at = text->find(needle, at)) != std::string_view::npos; at += needle.size()) ++n;
    return n;
  }
  const size_t at = !text ? std::string_view::npos : name[0] == 'r' ? text->rfind(needle) : text->find(needle);
  if (at != std::string_view::npos) return first + count_chars(text->substr(0, at));
  if (name == "index" || name == "rindex") runtime.fail("index(): the text is not in there");
  return int64_t{-1};
}

Value replace_method(Runtime& runtime, const std::string& self, std::string_view name, CallArguments& arguments) {
  const Bound bound = bind(runtime, name, arguments, {"old", "new", "count"}, 2);
  return replace_in(runtime, self, runtime.expect_text(*bound[0], name), runtime.expect_text(*bound[1], name),
                    bound[2] ? runtime.expect_integer(*bound[2], name) : -1);
}

Value lower(Runtime& runtime, std::optional<std::string> mapped) {
  if (!mapped) runtime.fail_unsupported("the lower case of the Greek capital sigma");
  return runtime.text(std::move(*mapped));
}

Value case_method(Runtime& runtime, const std::string& self, std::string_view name, CallArguments& arguments) {
  bind(runtime, name, arguments, {}, 0);
  runtime.spend_bytes(self.size());
  if (name == "upper") return runtime.text(to_upper(self));
  if (name == "lower") return lower(runtime, to_lower(self));
  if (name == "capitalize") return lower(runtime, capitalize(self));
  if (!is_ascii(self)) runtime.fail_unsupported(str("str.", name, "() of text beyond ASCII"));
  std::string out;
  bool in_word = false;
  for (const char c : self) {
    const bool upper = c >= 'A' && c <= 'Z', letter = upper || (c >= 'a' && c <= 'z');
    const bool wants_upper = name == "title" ? !in_word : !upper;
    out.push_back(letter ? static_cast<char>(wants_upper ? c & ~0x20 : c | 0x20) : c);
    in_word = letter;
  }
  return runtime.text(std::move(out));
}

Value is_method(Runtime& runtime, const std::string& self, std::string_view name, CallArguments& arguments) {
  bind(runtime, name, arguments, {}, 0);
  runtime.spend(static_cast<int64_t>(self.size() / 256));
  if (name == "isascii") return is_ascii(self);
  if (self.empty()) return false;
  if (name == "isspace") return strip(self, std::nullopt, true, false).empty();
  if (!is_ascii(self)) runtime.fail_unsupported(str("str.", name, "() of text beyond ASCII"));
  const auto is_upper = [](char c) { return c >= 'A' && c <= 'Z'; };
  const auto is_lower = [](char c) { return c >= 'a' && c <= 'z'; };
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  if (name == "isupper")
    return std::none_of(self.begin(), self.end(), is_lower) && std::any_of(self.begin(), self.end(), is_upper);
  if (name == "islower")
    return std::none_of(self.begin(), self.end(), is_upper) && std::any_of(self.begin(), self.end(), is_lower);
  return std::all_of(self.begin(), self.end(), [&](char c) {
    const bool alpha = is_upper(c) || is_lower(c);
    if (name == "isalpha") return alpha;
    return is_digit(c) || (name == "isalnum" && alpha);
  });
}

Value remove_method(Runtime& runtime, const std::string& self, std::string_view name, CallArguments& arguments) {
  const Bound bound = bind(runtime, name, arguments, {"affix"}, 1);
  const std::string& affix = runtime.expect_text(*bound[0], name);
  std::string_view out = self;
  if (name == "removeprefix" && out.starts_with(affix)) out.remove_prefix(affix.size());
  if (name == "removesuffix" && out.ends_with(affix)) out.remove_suffix(affix.size());
  return runtime.text(std::string(out));
}

Value partition_method(Runtime& runtime, const std::string& self, std::string_view name, CallArguments& arguments) {
  const Bound bound = bind(runtime, name, arguments, {"sep"}, 1);
  const std::string& separator = runtime.expect_text(*bound[0], name);
  if (separator.empty()) runtime.fail("partition(): the separator is empty");
  const std::string_view all = self;
  const bool right = name == "rpartition";
  const size_t at = right ? all.rfind(separator) : all.find(separator);
  std::vector<std::string_view> parts{all, "", ""};
  if (at != std::string_view::npos)
    parts = {all.substr(0, at), separator, all.substr(at + separator.size())};
  else if (right)
    parts = {"", "", all};
  return texts(runtime, parts, Sequence::Kind::tuple);
}

Value join_method(Runtime& runtime, const std::string& self, std::string_view name, CallArguments& arguments) {
  Bound bound = bind(runtime, name, arguments, {"iterable"}, 1);
  std::string out;
  bool first = true;
  for (const Value& item : runtime.iterate(*bound[0])) {
    if (!first) out += self;
    first = false;
    const std::string& piece = runtime.expect_text(item, name);
    runtime.spend_bytes(piece.size() + self.size());
    out += piece;
  }
  return make_text(std::move(out));
}

Value pad_method(Runtime& runtime, const std::string& self, std::string_view name, CallArguments& arguments) {
  const Bound bound = bind(runtime, name, arguments, {"width", "fillchar"}, 1);
  const std::string fill = bound[1] ? runtime.expect_text(*bound[1], name) : " ";
  if (count_chars(fill) != 1) runtime.fail(str(name, "(): the fill character is not one character"));
  const int64_t n = count_chars(self);
  const int64_t width = std::max(runtime.expect_integer(*bound[0], name), n), pad = width - n;
  if (static_cast<uint64_t>(pad) > runtime.limits().max_output_bytes) runtime.spend_bytes(SIZE_MAX);
  runtime.spend_bytes(static_cast<size_t>(pad) * fill.size());
  const int64_t left = name == "ljust" ? 0 : name == "rjust" ? pad : pad / 2 + (pad & width & 1);
  std::string out;
  for (int64_t i = 0; i < left; ++i) out += fill;
  out += self;
  for (int64_t i = left; i < pad; ++i) out += fill;
  return runtime.text(std::move(out));
}

const std::map<std::string_view, TextMethod>& text_methods() {
  static const std::map<std::string_view, TextMethod> kMethods{
      {"strip", strip_method},         {"lstrip", strip_method},
      {"rstrip", strip_method},        {"split", split_method},
      {"rsplit", split_method},        {"splitlines", split_lines_method},
      {"startswith", affix_method},    {"endswith", affix_method},
      {"find", find_method},           {"rfind", find_method},
      {"index", find_method},          {"rindex", find_method},
      {"count", find_method},          {"replace", replace_method},
      {"upper", case_method},          {"lower", case_method},
      {"capitalize", case_method},     {"title", case_method},
      {"swapcase", case_method},       {"isascii", is_method},
      {"isspace", is_method},          {"isupper", is_method},
      {"islower", is_method},          {"isalpha", is_method},
      {"isalnum", is_method},          {"isdigit", is_method},
      {"isdecimal", is_method},        {"isnumeric", is_method},
      {"removeprefix", remove_method}, {"removesuffix", remove_method},
      {"partition", partition_method}, {"rpartition", partition_method},
      {"join", join_method},           {"center", pad_method},
      {"ljust", pad_method},           {"rjust", pad_method}};
  return kMethods;
}

bool is_one_of(std::string_view name, std::initializer_list<std::string_view> names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

Value call_dict_method(Runtime& runtime, const Dict& dict, const Value& self, std::string_view name,
                       CallArguments& arguments) {
  if (name == "get") {
    const Bound bound = bind(runtime, name, arguments, {"key", "default"}, 1);
    runtime.expect_hashable(*bound[0]);
    if (const Value* found = runtime.find(dict, *bound[0])) return *found;
    return bound[1] ? *bound[1] : None{};
  }
  bind(runtime, name, arguments, {}, 0);
  if (name == "copy") return self;
  Values items;
  for (const auto& [key, value] : dict.items) {
    if (name == "keys")
      items.push_back(key);
    else if (name == "values")
      items.push_back(value);
    else
      items.push_back(runtime.sequence({key, value}, Sequence::Kind::tuple));
  }
  const auto kind = name == "keys"     ? Sequence::Kind::dict_keys
                    : name == "values" ? Sequence::Kind::dict_values
                                       : Sequence::Kind::dict_items;
  return runtime.sequence(std::move(items), kind);
}

Value call_range_method(Runtime& runtime, const Range& range, std::string_view name, CallArguments& arguments) {
  const Bound bound = bind(runtime, name, arguments, {"value"}, 1);
  double number = 0;
  const bool is_whole = is_number(*bound[0], number) && number == std::floor(number) && std::fabs(number) < 9e18;
  const int64_t n = range.size();
  int64_t offset = 0;
  const bool near =
      is_whole && !__builtin_sub_overflow(static_cast<int64_t>(number), range.start, &offset) && offset != INT64_MIN;
  const bool inside = near && n > 0 && offset % range.step == 0 && offset / range.step >= 0 && offset / range.step < n;
  if (name == "count") return int64_t{inside ? 1 : 0};
  if (!inside) runtime.fail("index(): the value is not in there");
  return offset / range.step;
}

Value call_sequence_method(Runtime& runtime, const Sequence& sequence, const Value& self, std::string_view name,
                           CallArguments& arguments) {
  if (name == "copy") return self;
  const Bound bound = bind(runtime, name, arguments, {"value"}, 1);
  int64_t n = 0, at = 0;
  for (const Value& item : sequence.items) {
    runtime.spend(1);
    const bool same = runtime.equal(item, *bound[0]);
    if (same && name == "index") return at;
    n += same ? 1 : 0;
    ++at;
  }
  if (name == "index") runtime.fail("index(): the value is not in there");
  return n;
}

Value call_loop_method(Runtime& runtime, Loop& loop, std::string_view name, CallArguments& arguments) {
  if (!arguments.keyword.empty()) runtime.fail(str("loop.", name, "() takes no named arguments"));
  Values& values = arguments.positional;
  if (name == "cycle") {
    if (values.empty()) runtime.fail("loop.cycle() without values");
    return values[loop.index % values.size()];
  }
  const bool first = loop.changed.empty();
  Value latest = runtime.sequence(std::move(values), Sequence::Kind::tuple);
  if (!first && runtime.equal(loop.changed.front(), latest)) return false;
  loop.depth = std::max(loop.depth, runtime.depth_above({latest}));
  loop.changed = {std::move(latest)};
  return true;
}

}  // namespace

Value replace_in(Runtime& runtime, const std::string& self, const std::string& from, const std::string& to,
                 int64_t max_count) {
  // The worst case is known before the text is made: `to` at every place where `from` may stand.
  const size_t places = from.empty() ? self.size() + 1 : self.size() / from.size();
  const size_t bounded = max_count < 0 ? places : std::min(places, static_cast<size_t>(max_count));
  if (to.size() > from.size() && bounded > runtime.limits().max_output_bytes / to.size()) {
    size_t n = 0;
    for (size_t at = 0; !from.empty() && n < bounded && (at = self.find(from, at)) != std::string::npos;
         at += from.size())
      ++n;
    runtime.spend_bytes(std::min<size_t>(from.empty() ? SIZE_MAX : n * to.size(), SIZE_MAX));
  }
  runtime.spend_bytes(self.size());
  return runtime.text(replace_all(self, from, to, max_count));
}

bool has_method(Runtime& runtime, const Value& value, std::string_view name) {
  if (as_text(value)) {
    if (text_methods().count(name) != 0) return true;
    if (is_one_of(name, {"casefold", "encode", "expandtabs", "format", "format_map", "isidentifier", "isprintable",
                         "istitle", "maketrans", "translate", "zfill"})) {
      runtime.fail_unsupported(str("str.", name));
    }
  } else if (as_dict(value)) {
    if (name == "fromkeys") runtime.fail_unsupported("dict.fromkeys");
    return is_one_of(name, {"get", "keys", "values", "items", "copy"});
  } else if (get_if<std::shared_ptr<const Range>>(value)) {
    return is_one_of(name, {"index", "count"});
  } else if (const Sequence* sequence = as_sequence(value)) {
    if (is_view(*sequence)) return false;
    return is_one_of(name, {"index", "count"}) || (name == "copy" && sequence->kind == Sequence::Kind::list);
  }
  return false;
}

Value call_method(Runtime& runtime, const Method& method, CallArguments arguments) {
  if (const Text* text = as_text(method.self)) {
    if (text->markup) runtime.fail_unsupported("a method of text that went through |safe");
    return text_methods().at(method.name)(runtime, *text->bytes, method.name, arguments);
  }
  if (const Dict* dict = as_dict(method.self))
    return call_dict_method(runtime, *dict, method.self, method.name, arguments);
  if (const Sequence* sequence = as_sequence(method.self)) {
    return call_sequence_method(runtime, *sequence, method.self, method.name, arguments);
  }
  if (const auto* range = get_if<std::shared_ptr<const Range>>(method.self)) {
    return call_range_method(runtime, **range, method.name, arguments);
  }
  return call_loop_method(runtime, **get_if<std::shared_ptr<Loop>>(method.self), method.name, arguments);
}

std::optional<Value> loop_attribute(Runtime& runtime, const std::shared_ptr<Loop>& loop, std::string_view name) {
  const int64_t index = static_cast<int64_t>(loop->index), n = static_cast<int64_t>(loop->items->size());
  if (name == "index") return index + 1;
  if (name == "index0") return index;
  if (name == "revindex") return n - index;
  if (name == "revindex0") return n - index - 1;
  if (name == "first") return index == 0;
  if (name == "last") return index == n - 1;
  if (name == "length") return n;
  if (name == "depth") return int64_t{loop->loop_depth};
  if (name == "depth0") return int64_t{loop->loop_depth - 1};
  if (name == "previtem" || name == "nextitem") {
    const int64_t at = name == "previtem" ? index - 1 : index + 1;
    if (at < 0 || at >= n) return Undefined{std::make_shared<const std::string>(name)};
    return (*loop->items)[static_cast<size_t>(at)];
  }
  if (name == "cycle" || name == "changed") {
    return std::make_shared<const Method>(Method{loop, std::string(name), runtime.depth_above({loop})});
  }
  return std::nullopt;
}

}  // namespace firstlight::jinja

// SPDX-License-Identifier: Apache-2.0
// Filters on single values. Defaults and corner cases are Jinja2's.
#include "firstlight/text/jinja_filters.h"

#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>

#include "firstlight/base/str.h"
#include "firstlight/text/jinja_methods.h"
#include "firstlight/text/jinja_text.h"

namespace firstlight::jinja {
namespace {

using Bound = std::vector<std::optional<Value>>;

std::string text_of(Runtime& runtime, const Value& input) {
  std::string out = runtime.to_text(input);
  runtime.spend_bytes(out.size());
  return out;
}

Value lowered(Runtime& runtime, std::optional<std::string> mapped) {
  if (!mapped) runtime.fail_unsupported("the lower case of the Greek capital sigma");
  return runtime.text(std::move(*mapped));
}

Value upper(Runtime& runtime, const Value& input, CallArguments& arguments) {
  bind(runtime, "upper", arguments, {}, 0);
  return runtime.text(to_upper(text_of(runtime, input)));
}

Value lower(Runtime& runtime, const Value& input, CallArguments& arguments) {
  bind(runtime, "lower", arguments, {}, 0);
  return lowered(runtime, to_lower(text_of(runtime, input)));
}

Value capitalize_filter(Runtime& runtime, const Value& input, CallArguments& arguments) {
  bind(runtime, "capitalize", arguments, {}, 0);
  return lowered(runtime, capitalize(text_of(runtime, input)));
}

Value title(Runtime& runtime, const Value& input, CallArguments& arguments) {
  bind(runtime, "title", arguments, {}, 0);
  return lowered(runtime, title_words(text_of(runtime, input)));
}

Value trim(Runtime& runtime, const Value& input, CallArguments& arguments) {
  const Bound bound = bind(runtime, "trim", arguments, {"chars"}, 0);
  std::optional<std::string> chars;
  if (bound[0] && !get_if<None>(*bound[0])) chars = runtime.expect_text(*bound[0], "trim");
  const std::string text = text_of(runtime, input);
  const Text* given = as_text(input);
  return runtime.text(std::string(strip(text, chars, true, true)), given && given->markup);
}

Value replace(Runtime& runtime, const Value& input, CallArguments& arguments) {
  const Bound bound = bind(runtime, "replace", arguments, {"old", "new", "count"}, 2);
  const int64_t count = bound[2] && !get_if<None>(*bound[2]) ? runtime.expect_integer(*bound[2], "replace") : -1;
  return replace_in(runtime, text_of(runtime, input), text_of(runtime, *bound[0]), text_of(runtime, *bound[1]), count);
}

Value default_filter(Runtime& runtime, const Value& input, CallArguments& arguments) {
  const Bound bound = bind(runtime, "default", arguments, {"default_value", "boolean"}, 0);
  const bool replaces = is_undefined(input) || (bound[1] && truth(*bound[1]) && !truth(input));
  if (!replaces) return input;
  return bound[0] ? *bound[0] : make_text("");
}

Value length(Runtime& runtime, const Value& input, CallArguments& arguments) {
  bind(runtime, "length", arguments, {}, 0);
  return runtime.length(input);
}

Value string(Runtime& runtime, const Value& input, CallArguments& arguments) {
  bind(runtime, "string", arguments, {}, 0);
  return as_text(input) ? input : Value(runtime.text(runtime.to_text(input)));
}

Value safe(Runtime& runtime, const Value& input, CallArguments& arguments) {
  bind(runtime, "safe", arguments, {}, 0);
  return runtime.text(runtime.to_text(input), true);
}

// A Python number in text: digits with single underscores between, white space around. Null if it is none.
std::optional<std::string> number_text(std::string_view text) {
  text = strip(text, std::nullopt, true, true);
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '_')
      out.push_back(text[i]);
    else if (i == 0 || i + 1 == text.size() || !std::isalnum(static_cast<unsigned char>(text[i - 1])) ||
             !std::isalnum(static_cast<unsigned char>(text[i + 1])))
      return std::nullopt;
  }
  return out.empty() ? std::nullopt : std::optional(out);
}

std::optional<double> parse_real(std::string_view text) {
  const auto digits = number_text(text);
  if (!digits || digits->find_first_of("xXpP(") != std::string::npos) return std::nullopt;
  char* end = nullptr;
  const double value = std::strtod(digits->c_str(), &end);
  return end == digits->c_str() + digits->size() ? std::optional(value) : std::nullopt;
}

Value real_to_integer(Runtime& runtime, double value, const Value& fallback) {
  if (std::isnan(value) || std::isinf(value)) return fallback;
  if (std::fabs(value) >= 9.2e18) runtime.fail_unsupported("an integer beyond 64 bits");
  return static_cast<int64_t>(value);
}

Value to_int(Runtime& runtime, const Value& input, CallArguments& arguments) {
  const Bound bound = bind(runtime, "int", arguments, {"default", "base"}, 0);
  const Value fallback = bound[0] ? *bound[0] : Value(int64_t{0});
  if (bound[1] && runtime.expect_integer(*bound[1], "int") != 10)
    runtime.fail_unsupported("int with a base other than 10");
  int64_t integer = 0;
  if (is_undefined(input)) runtime.fail_undefined(input);
  if (is_integer(input, integer)) return integer;
  if (const auto* real = get_if<double>(input)) return real_to_integer(runtime, *real, fallback);
  const Text* text = as_text(input);
  if (!text) return fallback;
  if (const auto digits = number_text(*text->bytes)) {
    const char* begin = digits->c_str() + ((*digits)[0] == '+' && digits->size() > 1 && (*digits)[1] != '-' ? 1 : 0);
    const auto result = std::from_chars(begin, digits->c_str() + digits->size(), integer);
    if (result.ptr == digits->c_str() + digits->size()) {
      if (result.ec == std::errc::result_out_of_range) runtime.fail_unsupported("an integer beyond 64 bits");
      if (result.ec == std::errc()) return integer;
    }
  }
  const auto real = parse_real(*text->bytes);
  return real ? real_to_integer(runtime, *real, fallback) : fallback;
}

Value to_float(Runtime& runtime, const Value& input, CallArguments& arguments) {
  const Bound bound = bind(runtime, "float", arguments, {"default"}, 0);
  double number = 0;
  if (is_undefined(input)) runtime.fail_undefined(input);
  if (is_number(input, number)) return number;
  if (const Text* text = as_text(input)) {
    if (const auto real = parse_real(*text->bytes)) return *real;
  }
  return bound[0] ? *bound[0] : Value(0.0);
}

Value abs_filter(Runtime& runtime, const Value& input, CallArguments& arguments) {
  bind(runtime, "abs", arguments, {}, 0);
  double number = 0;
  if (!is_number(input, number)) return runtime.negate(input, false);  // fails with the type's name
  return runtime.negate(input, number < 0 || (number == 0 && std::signbit(number)));
}

Value round_filter(Runtime& runtime, const Value& input, CallArguments& arguments) {
  const Bound bound = bind(runtime, "round", arguments, {"precision", "method"}, 0);
  const int64_t precision = bound[0] ? runtime.expect_integer(*bound[0], "round") : 0;
  const std::string method = bound[1] ? runtime.expect_text(*bound[1], "round") : "common";
  if (method != "common" && method != "ceil" && method != "floor")
    runtime.fail("round: the method is common, ceil or floor");
  if (precision < 0 || precision > 30) runtime.fail_unsupported("round with a precision outside of 0 to 30");
  double number = 0;
  if (!is_number(input, number)) runtime.fail(str("round: found a ", type_name(input), ", expected a number"));
  if (method != "common") {
    const double scale = std::pow(10.0, static_cast<double>(precision));
    const double whole = method == "ceil" ? std::ceil(number * scale) : std::floor(number * scale);
    if (!std::isfinite(whole)) runtime.fail("round: not a finite number");
    return (whole + 0.0) / scale;  // Python goes through an int here: no negative zero
  }
  int64_t integer = 0;
  if (is_integer(input, integer)) return integer;
  char buffer[400];  // printf rounds the exact value, as Python does
  std::snprintf(buffer, sizeof buffer, "%.*f", static_cast<int>(precision), number);
  return std::strtod(buffer, nullptr);
}

Value indent(Runtime& runtime, const Value& input, CallArguments& arguments) {
  const Bound bound = bind(runtime, "indent", arguments, {"width", "first", "blank"}, 0);
  std::string pad = "    ";
  if (bound[0] && as_text(*bound[0]))
    pad = *as_text(*bound[0])->bytes;
  else if (bound[0]) {
    const int64_t width = std::max<int64_t>(runtime.expect_integer(*bound[0], "indent"), 0);
    if (static_cast<uint64_t>(width) > runtime.limits().max_output_bytes) runtime.spend_bytes(SIZE_MAX);
    pad.assign(static_cast<size_t>(width), ' ');
  }
  const bool first = bound[1] && truth(*bound[1]), blank = bound[2] && truth(*bound[2]);
  const std::string text = runtime.expect_text(input, "indent") + "\n";  // a closing line end keeps the last line
  std::string out;
  size_t n = 0;
  for (const std::string_view line : split_lines(text, false)) {
    if (n != 0) out += '\n';
    if (n == 0 ? first : blank || !line.empty()) {
      runtime.spend_bytes(pad.size());
      out += pad;
    }
    out += line;
    ++n;
  }
  return runtime.text(std::move(out));
}

Value wordcount(Runtime& runtime, const Value& input, CallArguments& arguments) {
  bind(runtime, "wordcount", arguments, {}, 0);
  const std::string text = text_of(runtime, input);
  int64_t n = 0;
  bool in_word = false;
  for (size_t at = 0; at < text.size();) {
    const char32_t c = next_char(text, at);
    if (c >= 0x80) runtime.fail_unsupported("wordcount of text beyond ASCII");
    const bool word = std::isalnum(static_cast<int>(c)) != 0 || c == '_';
    n += word && !in_word ? 1 : 0;
    in_word = word;
  }
  return n;
}

const std::map<std::string_view, Filter>& filters() {
  static const std::map<std::string_view, Filter> kFilters{{"abs", abs_filter},
                                                           {"capitalize", capitalize_filter},
                                                           {"count", length},
                                                           {"d", default_filter},
                                                           {"default", default_filter},
                                                           {"float", to_float},
                                                           {"indent", indent},
                                                           {"int", to_int},
                                                           {"length", length},
                                                           {"lower", lower},
                                                           {"replace", replace},
                                                           {"round", round_filter},
                                                           {"safe", safe},
                                                           {"string", string},
                                                           {"title", title},
                                                           {"tojson", to_json_filter},
                                                           {"trim", trim},
                                                           {"upper", upper},
                                                           {"wordcount", wordcount}};
  return kFilters;
}

Filter find_filter(std::string_view name) {
  const auto found = filters().find(name);
  return found != filters().end() ? found->second : find_list_filter(name);
}

}  // namespace

bool is_known_filter(std::string_view name) { return find_filter(name) != nullptr; }

Value call_filter(Runtime& runtime, std::string_view name, const Value& input, CallArguments arguments) {
  const Filter filter = find_filter(name);
  if (!filter) runtime.fail_unsupported(str("the filter '", name, "'"));
  runtime.spend(1);
  // Markup keeps escaping what meets it. Only filters where that makes no difference take it.
  const Text* text = as_text(input);
  const bool takes_markup = name == "safe" || name == "string" || name == "trim" || name == "length" ||
                            name == "count" || name == "tojson" || name == "default" || name == "d";
  if (text && text->markup && !takes_markup) runtime.fail_unsupported(str("the filter '", name, "' behind |safe"));
  return filter(runtime, input, arguments);
}

}  // namespace firstlight::jinja

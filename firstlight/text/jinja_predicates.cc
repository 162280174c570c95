// SPDX-License-Identifier: Apache-2.0
// Tests: x is name.
#include <map>

#include "firstlight/base/str.h"
#include "firstlight/text/jinja_filters.h"
#include "firstlight/text/jinja_methods.h"
#include "firstlight/text/jinja_text.h"

namespace firstlight::jinja {
namespace {

using Predicate = bool (*)(Runtime&, const Value&);
using Comparison = bool (*)(Runtime&, const Value&, const Value&);

bool is_boolean(const Value& value) { return get_if<bool>(value) != nullptr; }

bool divides(Runtime& runtime, const Value& value, int64_t divisor, int64_t remainder) {
  return runtime.equal(runtime.arithmetic(Op::modulo, value, divisor), remainder);
}

bool has_case(Runtime& runtime, const Value& value, std::string_view method) {
  return truth(call_method(runtime, Method{runtime.text(runtime.to_text(value)), std::string(method), 1}, {}));
}

const std::map<std::string_view, Predicate>& predicates() {
  static const std::map<std::string_view, Predicate> kPredicates{
      {"boolean", [](Runtime&, const Value& v) { return is_boolean(v); }},
      {"callable",
       [](Runtime&, const Value& v) {
         return is_undefined(v) || get_if<Macro*>(v) || get_if<Function>(v) || get_if<std::shared_ptr<const Method>>(v);
       }},
      {"defined", [](Runtime&, const Value& v) { return !is_undefined(v); }},
      {"escaped", [](Runtime&, const Value& v) { return as_text(v) && as_text(v)->markup; }},
      {"even", [](Runtime& r, const Value& v) { return divides(r, v, 2, 0); }},
      {"false", [](Runtime&, const Value& v) { return is_boolean(v) && !*get_if<bool>(v); }},
      {"filter", [](Runtime& r, const Value& v) { return is_known_filter(r.expect_text(v, "filter")); }},
      {"float", [](Runtime&, const Value& v) { return get_if<double>(v) != nullptr; }},
      {"integer", [](Runtime&, const Value& v) { return get_if<int64_t>(v) != nullptr; }},
      {"iterable", [](Runtime& r, const Value& v) { return r.is_iterable(v); }},
      {"lower", [](Runtime& r, const Value& v) { return has_case(r, v, "islower"); }},
      {"mapping", [](Runtime&, const Value& v) { return as_dict(v) != nullptr; }},
      {"none", [](Runtime&, const Value& v) { return get_if<None>(v) != nullptr; }},
      {"number",
       [](Runtime&, const Value& v) {
         double number = 0;
         return is_number(v, number);
       }},
      {"odd", [](Runtime& r, const Value& v) { return divides(r, v, 2, 1); }},
      {"sequence",
       [](Runtime&, const Value& v) {
         const Sequence* sequence = as_sequence(v);
         return is_undefined(v) || as_text(v) || as_dict(v) || (sequence && !is_view(*sequence)) ||
                get_if<std::shared_ptr<const Range>>(v);
       }},
      {"string", [](Runtime&, const Value& v) { return as_text(v) != nullptr; }},
      {"test", [](Runtime& r, const Value& v) { return is_known_test(r.expect_text(v, "test")); }},
      {"true", [](Runtime&, const Value& v) { return is_boolean(v) && *get_if<bool>(v); }},
      {"undefined", [](Runtime&, const Value& v) { return is_undefined(v); }},
      {"upper", [](Runtime& r, const Value& v) { return has_case(r, v, "isupper"); }}};
  return kPredicates;
}

bool same(Runtime& runtime, const Value& a, const Value& b) {
  const auto is_single = [](const Value& v) { return get_if<None>(v) || is_boolean(v); };
  if (is_single(a) || is_single(b)) return a.index() == b.index() && runtime.equal(a, b);
  runtime.fail_unsupported("'sameas' of anything but none, true and false");
}

template <Op op>
bool compared(Runtime& runtime, const Value& a, const Value& b) {
  return runtime.compare(op, a, b);
}

const std::map<std::string_view, Comparison>& comparisons() {
  static const std::map<std::string_view, Comparison> kComparisons{
      {"divisibleby",
       [](Runtime& r, const Value& a, const Value& b) { return r.equal(r.arithmetic(Op::modulo, a, b), int64_t{0}); }},
      {"eq", compared<Op::equal>},
      {"equalto", compared<Op::equal>},
      {"==", compared<Op::equal>},
      {"ne", compared<Op::not_equal>},
      {"!=", compared<Op::not_equal>},
      {"lt", compared<Op::less>},
      {"lessthan", compared<Op::less>},
      {"<", compared<Op::less>},
      {"le", compared<Op::less_equal>},
      {"<=", compared<Op::less_equal>},
      {"gt", compared<Op::greater>},
      {"greaterthan", compared<Op::greater>},
      {">", compared<Op::greater>},
      {"ge", compared<Op::greater_equal>},
      {">=", compared<Op::greater_equal>},
      {"in", [](Runtime& r, const Value& a, const Value& b) { return r.contains(b, a); }},
      {"sameas", same}};
  return kComparisons;
}

}  // namespace

bool is_known_test(std::string_view name) { return predicates().count(name) != 0 || comparisons().count(name) != 0; }

bool call_test(Runtime& runtime, std::string_view name, const Value& input, CallArguments arguments) {
  runtime.spend(1);
  if (const auto found = predicates().find(name); found != predicates().end()) {
    bind(runtime, name, arguments, {}, 0);
    return found->second(runtime, input);
  }
  const auto found = comparisons().find(name);
  if (found == comparisons().end()) runtime.fail_unsupported(str("the test '", name, "'"));
  const auto bound = bind(runtime, name, arguments, {"other"}, 1);
  return found->second(runtime, input, *bound[0]);
}

}  // namespace firstlight::jinja

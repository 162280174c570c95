// SPDX-License-Identifier: Apache-2.0
// Python's operators on values. Integers beyond 64 bits are refused, not rounded.
#include <cmath>

#include "firstlight/base/str.h"
#include "firstlight/text/jinja_runtime.h"
#include "firstlight/text/jinja_text.h"

namespace firstlight::jinja {
namespace {

std::string_view symbol(Op op) {
  static constexpr std::string_view kSymbols[] = {
      "+", "-", "*", "/", "//", "%", "**", "==", "!=", "<", "<=", ">", ">=", "in", "not in"};
  return kSymbols[static_cast<size_t>(op)];
}

std::string html_escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '\'':
        out += "&#39;";
        break;
      case '"':
        out += "&#34;";
        break;
      default:
        out.push_back(c);
    }
  }
  return out;
}

template <class T>
bool ordered(Op op, const T& a, const T& b) {
  switch (op) {
    case Op::less:
      return a < b;
    case Op::less_equal:
      return a <= b;
    case Op::greater:
      return a > b;
    default:
      return a >= b;
  }
}

}  // namespace

bool Runtime::equal_items(const Values& a, const Values& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!equal(a[i], b[i])) return false;
  }
  return true;
}

bool Runtime::equal(const Value& a, const Value& b) {
  int64_t i = 0, j = 0;
  if (is_integer(a, i) && is_integer(b, j)) return i == j;
  double x = 0, y = 0;
  if (is_number(a, x) && is_number(b, y)) return x == y;
  if (a.index() != b.index()) return false;
  if (const Text* text = as_text(a)) {
    const std::string& other = *as_text(b)->bytes;
    if (text->bytes->size() != other.size()) return false;
    spend(static_cast<int64_t>(other.size() / 1024));
    return *text->bytes == other;
  }
  spend(1);
  if (is_undefined(a) || get_if<None>(a)) return true;
  if (const Sequence* first = as_sequence(a)) {
    const Sequence* second = as_sequence(b);
    if (first == second) return true;
    if (is_view(*first)) fail_unsupported("comparing dict views");
    return first->kind == second->kind && equal_items(first->items, second->items);
  }
  if (const Dict* first = as_dict(a)) {
    const Dict* second = as_dict(b);
    if (first->items.size() != second->items.size()) return false;
    for (const auto& [key, value] : first->items) {
      const Value* other = find(*second, key);
      if (!other || !equal(value, *other)) return false;
    }
    return true;
  }
  if (const auto* range = get_if<std::shared_ptr<const Range>>(a)) {
    const Range& first = **range;
    const Range& second = **get_if<std::shared_ptr<const Range>>(b);
    const int64_t n = first.size();
    return n == second.size() && (n == 0 || (first.start == second.start && (n == 1 || first.step == second.step)));
  }
  if (const auto* macro = get_if<Macro*>(a)) return *macro == *get_if<Macro*>(b);
  if (const auto* space = get_if<Namespace*>(a)) return *space == *get_if<Namespace*>(b);
  if (const auto* function = get_if<Function>(a)) return *function == *get_if<Function>(b);
  if (const auto* walked = get_if<std::shared_ptr<Generator>>(a))
    return *walked == *get_if<std::shared_ptr<Generator>>(b);
  if (const auto* loop = get_if<std::shared_ptr<Loop>>(a)) return *loop == *get_if<std::shared_ptr<Loop>>(b);
  fail_unsupported(str("comparing a ", type_name(a)));
}

bool Runtime::compare(Op op, const Value& a, const Value& b) {
  if (op == Op::equal) return equal(a, b);
  if (op == Op::not_equal) return !equal(a, b);
  int64_t i = 0, j = 0;
  if (is_integer(a, i) && is_integer(b, j)) return ordered(op, i, j);
  double x = 0, y = 0;
  if (is_number(a, x) && is_number(b, y)) return ordered(op, x, y);
  if (as_text(a) && as_text(b))
    return ordered(op, *as_text(a)->bytes, *as_text(b)->bytes);  // bytes order as code points do
  const Sequence* first = as_sequence(a);
  const Sequence* second = as_sequence(b);
  if (first && second && first->kind == second->kind && !is_view(*first)) {
    const size_t n = std::min(first->items.size(), second->items.size());
    for (size_t at = 0; at < n; ++at) {
      if (!equal(first->items[at], second->items[at])) return compare(op, first->items[at], second->items[at]);
    }
    return ordered(op, first->items.size(), second->items.size());
  }
  if (is_undefined(a)) fail_undefined(a);
  if (is_undefined(b)) fail_undefined(b);
  fail(str("'", symbol(op), "' between a ", type_name(a), " and a ", type_name(b)));
}

bool Runtime::contains(const Value& container, const Value& value) {
  spend(1);
  if (const Text* text = as_text(container)) {
    const std::string& needle = expect_text(value, "'in' a str");
    spend(static_cast<int64_t>(text->bytes->size() / 256));
    return text->bytes->find(needle) != std::string::npos;
  }
  if (const Dict* found = as_dict(container)) {
    expect_hashable(value);
    return find(*found, value) != nullptr;
  }
  if (const auto* walked = get_if<std::shared_ptr<Generator>>(container)) {
    Generator& g = **walked;
    while (g.next < g.items.size()) {
      spend(1);
      if (equal(g.items[g.next++], value)) return true;
    }
    return false;
  }
  if (const Sequence* sequence = as_sequence(container)) {
    for (const Value& item : sequence->items) {
      spend(1);
      if (equal(item, value)) return true;
    }
    return false;
  }
  for (const Value& item : iterate(container)) {
    if (equal(item, value)) return true;
  }
  return false;
}

Value Runtime::negate(const Value& value, bool negative) {
  int64_t integer = 0;
  if (is_integer(value, integer)) {
    if (negative && integer == INT64_MIN) fail_unsupported("an integer beyond 64 bits");
    return negative ? -integer : integer;
  }
  if (const auto* real = get_if<double>(value)) return negative ? -*real : *real;
  if (is_undefined(value)) fail_undefined(value);
  fail(str("a sign before a ", type_name(value)));
}

Value Runtime::integer_arithmetic(Op op, int64_t a, int64_t b) {
  int64_t out = 0;
  bool overflow = false;
  switch (op) {
    case Op::add:
      overflow = __builtin_add_overflow(a, b, &out);
      break;
    case Op::subtract:
      overflow = __builtin_sub_overflow(a, b, &out);
      break;
    case Op::multiply:
      overflow = __builtin_mul_overflow(a, b, &out);
      break;
    case Op::floor_divide:
    case Op::modulo: {
      if (b == 0) fail("division by zero");
      if (a == INT64_MIN && b == -1) {
        overflow = op == Op::floor_divide;
        break;
      }
      const int64_t remainder = a % b;
      const bool floors = remainder != 0 && (remainder < 0) != (b < 0);
      out = op == Op::modulo ? remainder + (floors ? b : 0) : a / b - (floors ? 1 : 0);
      break;
    }
    default: {  // power; a negative exponent gives a float
      if (b < 0) return real_arithmetic(op, static_cast<double>(a), static_cast<double>(b));
      out = 1;
      if (a == 0 || a == 1 || a == -1)
        return b == 0 || a == 1 ? int64_t{1} : a == 0 ? int64_t{0} : b % 2 == 0 ? int64_t{1} : int64_t{-1};
      for (int64_t i = 0; i < b && !overflow; ++i) overflow = __builtin_mul_overflow(out, a, &out);
    }
  }
  if (overflow) fail_unsupported("an integer beyond 64 bits");
  return out;
}

Value Runtime::real_arithmetic(Op op, double a, double b) {
  switch (op) {
    case Op::add:
      return a + b;
    case Op::subtract:
      return a - b;
    case Op::multiply:
      return a * b;
    case Op::divide:
      if (b == 0) fail("division by zero");
      return a / b;
    case Op::power: {
      if (a == 0 && b < 0) fail("0 to a negative power");
      const double out = std::pow(a, b);
      if (std::isnan(out) && !std::isnan(a) && !std::isnan(b)) fail_unsupported("a complex number");
      if (std::isinf(out) && !std::isinf(a) && !std::isinf(b)) fail("a power is too large");
      return out;
    }
    default:
      break;
  }
  if (b == 0) fail("division by zero");
  double remainder = std::fmod(a, b);
  double quotient = (a - remainder) / b;
  if (remainder != 0 && (remainder < 0) != (b < 0)) {
    remainder += b;
    quotient -= 1;
  } else if (remainder == 0) {
    remainder = std::copysign(0.0, b);
  }
  if (op == Op::modulo) return remainder;
  if (quotient == 0) return std::copysign(0.0, a / b);
  const double floored = std::floor(quotient);
  return quotient - floored > 0.5 ? floored + 1 : floored;
}

Value Runtime::add(const Value& a, const Value& b) {
  const Text* first = as_text(a);
  const Text* second = as_text(b);
  if (first && second) {
    spend_bytes(first->bytes->size() + second->bytes->size());
    if (!first->markup && !second->markup) return make_text(*first->bytes + *second->bytes);
    const std::string left = first->markup ? *first->bytes : html_escaped(*first->bytes);
    return text(left + (second->markup ? *second->bytes : html_escaped(*second->bytes)), true);
  }
  const Sequence* left = as_sequence(a);
  const Sequence* right = as_sequence(b);
  if (left && right && left->kind == right->kind && !is_view(*left)) {
    spend(static_cast<int64_t>(left->items.size() + right->items.size()));
    Values items = left->items;
    items.insert(items.end(), right->items.begin(), right->items.end());
    return sequence(std::move(items), left->kind);
  }
  fail(str("'+' between a ", type_name(a), " and a ", type_name(b)));
}

Value Runtime::repeat(const Value& value, int64_t n) {
  n = std::max<int64_t>(n, 0);
  if (const Text* found = as_text(value)) {
    const size_t size = found->bytes->size();
    if (size == 0 || n == 0) return make_text("", found->markup);
    if (static_cast<uint64_t>(n) > limits_.max_output_bytes / size) spend_bytes(limits_.max_output_bytes + 1);
    spend_bytes(size * static_cast<size_t>(n));
    std::string out;
    out.reserve(size * static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) out += *found->bytes;
    return make_text(std::move(out), found->markup);
  }
  const Sequence* found = as_sequence(value);
  const int64_t size = static_cast<int64_t>(found->items.size());
  if (size == 0 || n == 0) return sequence({}, found->kind);
  if (n > limits_.max_steps / size) spend(limits_.max_steps + 1);
  spend(size * n);
  Values items;
  for (int64_t i = 0; i < n; ++i) items.insert(items.end(), found->items.begin(), found->items.end());
  return sequence(std::move(items), found->kind);
}

Value Runtime::arithmetic(Op op, const Value& a, const Value& b) {
  spend(1);
  if (is_undefined(a)) fail_undefined(a);
  if (is_undefined(b)) fail_undefined(b);
  int64_t i = 0, j = 0;
  if (op != Op::divide && is_integer(a, i) && is_integer(b, j)) return integer_arithmetic(op, i, j);
  double x = 0, y = 0;
  if (is_number(a, x) && is_number(b, y)) return real_arithmetic(op, x, y);
  if (op == Op::add) return add(a, b);
  const auto repeatable = [](const Value& value) {
    return as_text(value) || (as_sequence(value) && !is_view(*as_sequence(value)));
  };
  if (op == Op::multiply && repeatable(a) && is_integer(b, j)) return repeat(a, j);
  if (op == Op::multiply && repeatable(b) && is_integer(a, i)) return repeat(b, i);
  if (op == Op::modulo && as_text(a)) fail_unsupported("formatting with '%'");
  fail(str("'", symbol(op), "' between a ", type_name(a), " and a ", type_name(b)));
}

}  // namespace firstlight::jinja

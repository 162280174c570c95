// SPDX-License-Identifier: Apache-2.0
#include "firstlight/base/str.h"
#include "firstlight/text/jinja_eval.h"
#include "firstlight/text/jinja_filters.h"
#include "firstlight/text/jinja_methods.h"
#include "firstlight/text/jinja_text.h"

namespace firstlight::jinja {

Value Evaluator::evaluate(const Expr& expr, const ScopePtr& scope) {
  const Runtime::Level level(runtime_);
  runtime_.spend(1);
  switch (expr.kind) {
    case ExprKind::literal:
      return expr.value;
    case ExprKind::name:
      return look_up(expr.name, *scope);
    case ExprKind::list:
    case ExprKind::tuple: {
      Values items;
      for (const ExprPtr& item : expr.items) items.push_back(evaluate(*item, scope));
      return runtime_.sequence(std::move(items),
                               expr.kind == ExprKind::list ? Sequence::Kind::list : Sequence::Kind::tuple);
    }
    case ExprKind::dict:
      return evaluate_dict(expr, scope);
    case ExprKind::chain:
      return evaluate_chain(expr, scope, nullptr);
    case ExprKind::negative:
    case ExprKind::positive:
      return runtime_.negate(evaluate(*expr.items[0], scope), expr.kind == ExprKind::negative);
    case ExprKind::logical_not:
      return !truth(evaluate(*expr.items[0], scope));
    case ExprKind::logical_and:
    case ExprKind::logical_or: {
      Value value;
      for (const ExprPtr& item : expr.items) {
        value = evaluate(*item, scope);
        if (truth(value) == (expr.kind == ExprKind::logical_or)) break;
      }
      return value;
    }
    case ExprKind::arithmetic: {
      Value value = evaluate(*expr.items[0], scope);
      for (size_t i = 0; i < expr.ops.size(); ++i) {
        value = runtime_.arithmetic(expr.ops[i], value, evaluate(*expr.items[i + 1], scope));
      }
      return value;
    }
    case ExprKind::concat:
      return evaluate_concat(expr, scope);
    case ExprKind::compare:
      return evaluate_compare(expr, scope);
    case ExprKind::conditional:
      if (truth(evaluate(*expr.items[0], scope))) return evaluate(*expr.items[1], scope);
      return expr.items.size() > 2 ? evaluate(*expr.items[2], scope) : Value(Undefined{});
  }
  runtime_.fail("unknown expression");
}

Value Evaluator::evaluate_concat(const Expr& expr, const ScopePtr& scope) {
  std::string out;
  for (const ExprPtr& item : expr.items) {
    const std::string piece = runtime_.to_text(evaluate(*item, scope));
    runtime_.spend_bytes(piece.size());
    out += piece;
  }
  if (out.size() > runtime_.limits().max_output_bytes) runtime_.spend_bytes(out.size());
  return make_text(std::move(out));
}

Value Evaluator::evaluate_dict(const Expr& expr, const ScopePtr& scope) {
  std::vector<std::pair<Value, Value>> items;
  for (size_t i = 0; i + 1 < expr.items.size(); i += 2) {
    Value key = evaluate(*expr.items[i], scope);
    items.emplace_back(std::move(key), evaluate(*expr.items[i + 1], scope));
  }
  return runtime_.dict(std::move(items));
}

bool Evaluator::evaluate_compare(const Expr& expr, const ScopePtr& scope) {
  Value left = evaluate(*expr.items[0], scope);
  for (size_t i = 0; i < expr.ops.size(); ++i) {
    Value right = evaluate(*expr.items[i + 1], scope);
    const Op op = expr.ops[i];
    const bool holds = op == Op::in       ? runtime_.contains(right, left)
                       : op == Op::not_in ? !runtime_.contains(right, left)
                                          : runtime_.compare(op, left, right);
    if (!holds) return false;
    left = std::move(right);
  }
  return true;
}

Value Evaluator::evaluate_chain(const Expr& expr, const ScopePtr& scope, Macro* caller) {
  Value value = evaluate(*expr.items[0], scope);
  for (size_t i = 0; i < expr.suffixes.size(); ++i) {
    runtime_.spend(1);
    value = apply(expr.suffixes[i], value, scope, i + 1 == expr.suffixes.size() ? caller : nullptr);
  }
  return value;
}

Value Evaluator::optional(const ExprPtr& expr, const ScopePtr& scope) {
  return expr ? evaluate(*expr, scope) : Value(None{});
}

Value Evaluator::apply(const Suffix& suffix, const Value& value, const ScopePtr& scope, Macro* caller) {
  switch (suffix.kind) {
    case Suffix::Kind::attribute:
      return runtime_.attribute(value, suffix.name);
    case Suffix::Kind::item:
      return runtime_.item(value, evaluate(*suffix.start, scope));
    case Suffix::Kind::slice: {
      const Value start = optional(suffix.start, scope), stop = optional(suffix.stop, scope);
      return runtime_.slice(value, start, stop, optional(suffix.step, scope));
    }
    case Suffix::Kind::filter:
      return call_filter(runtime_, suffix.name, value, arguments_of(suffix, scope));
    case Suffix::Kind::test:
      return call_test(runtime_, suffix.name, value, arguments_of(suffix, scope)) != suffix.negated;
    case Suffix::Kind::call:
      break;
  }
  CallArguments arguments = arguments_of(suffix, scope);
  if (caller) arguments.keyword.emplace_back("caller", caller);
  return call(value, std::move(arguments));
}

CallArguments Evaluator::arguments_of(const Suffix& suffix, const ScopePtr& scope) {
  CallArguments out;
  for (const Argument& argument : suffix.arguments) {
    Value value = evaluate(*argument.value, scope);
    if (argument.kind == Argument::Kind::positional) {
      out.positional.push_back(std::move(value));
    } else if (argument.kind == Argument::Kind::keyword) {
      out.keyword.emplace_back(argument.name, std::move(value));
    } else if (argument.kind == Argument::Kind::star) {
      for (Value& item : runtime_.iterate(value)) out.positional.push_back(std::move(item));
    } else {
      const Dict* dict = as_dict(value);
      if (!dict) runtime_.fail(str("'**' before a ", type_name(value), ", expected a dict"));
      for (const auto& [key, entry] : dict->items) out.keyword.emplace_back(runtime_.expect_text(key, "'**'"), entry);
    }
  }
  return out;
}

Value Evaluator::call(const Value& callee, CallArguments arguments) {
  runtime_.spend(1);
  if (const auto* macro = get_if<Macro*>(callee)) return call_macro(**macro, std::move(arguments));
  if (const auto* function = get_if<Function>(callee)) return call_function(*function, std::move(arguments));
  if (const auto* method = get_if<std::shared_ptr<const Method>>(callee))
    return call_method(runtime_, **method, std::move(arguments));
  if (get_if<std::shared_ptr<Loop>>(callee)) runtime_.fail_unsupported("a recursive loop");
  if (is_undefined(callee)) runtime_.fail_undefined(callee);
  runtime_.fail(str("a ", type_name(callee), " cannot be called"));
}

Value Evaluator::call_function(Function function, CallArguments arguments) {
  switch (function) {
    case Function::range:
      return make_range(arguments);
    case Function::dict:
      return make_dict(std::move(arguments));
    case Function::namespace_:
      return make_namespace(std::move(arguments));
    case Function::raise_exception: {
      const auto bound = bind(runtime_, "raise_exception", arguments, {"message"}, 1);
      throw Error(ErrorKind::bad_input, str("chat template: ", runtime_.to_text(*bound[0])));
    }
    case Function::strftime_now: {
      const auto bound = bind(runtime_, "strftime_now", arguments, {"format"}, 1);
      return format_time(runtime_.expect_text(*bound[0], "strftime_now"));
    }
  }
  runtime_.fail("unknown function");
}

Value Evaluator::make_range(const CallArguments& arguments) {
  constexpr int64_t kMaxRange = 100'000;  // the limit of Jinja2's sandbox
  const Values& given = arguments.positional;
  if (!arguments.keyword.empty() || given.empty() || given.size() > 3)
    runtime_.fail("range() takes one to three integers");
  Range range;
  if (given.size() > 1) range.start = runtime_.expect_integer(given[0], "range");
  range.stop = runtime_.expect_integer(given[given.size() > 1 ? 1 : 0], "range");
  if (given.size() > 2) range.step = runtime_.expect_integer(given[2], "range");
  if (range.step == 0) runtime_.fail("range(): the step is 0");
  if (range.size() > kMaxRange) runtime_.fail(str("range(): ", range.size(), " numbers, expected at most ", kMaxRange));
  return std::make_shared<const Range>(range);
}

Value Evaluator::make_dict(CallArguments arguments) {
  std::vector<std::pair<Value, Value>> items;
  if (arguments.positional.size() > 1) runtime_.fail("dict() takes one dict or list of pairs");
  if (!arguments.positional.empty()) {
    if (const Dict* from = as_dict(arguments.positional[0])) {
      items = from->items;
    } else {
      for (const Value& pair : runtime_.iterate(arguments.positional[0])) {
        Values parts = runtime_.iterate(pair);
        if (parts.size() != 2) runtime_.fail("dict(): expected pairs");
        items.emplace_back(std::move(parts[0]), std::move(parts[1]));
      }
    }
  }
  for (auto& [name, value] : arguments.keyword) items.emplace_back(make_text(std::move(name)), std::move(value));
  return runtime_.dict(std::move(items));
}

Value Evaluator::make_namespace(CallArguments arguments) {
  const Value dict = make_dict(std::move(arguments));
  Namespace& out = namespaces_.emplace_back();
  runtime_.spend(4);
  for (const auto& [key, value] : as_dict(dict)->items) {
    const std::string& name = runtime_.expect_text(key, "namespace");
    if (name.starts_with("_")) runtime_.fail(str("the attribute '", name, "' begins with '_'"));
    out.attributes.emplace_back(name, value);
  }
  return &out;
}

Value Evaluator::format_time(const std::string& format) {
  if (!now_) {
    const std::time_t seconds = std::time(nullptr);
    std::tm local{};
    localtime_r(&seconds, &local);
    now_ = local;
  }
  static constexpr std::string_view kKnown = "aAbBdHIjmMpSUwWyYcxXZzCeDFgGhkntrRTuV%";
  std::string out;
  for (size_t at = 0; at < format.size(); ++at) {
    if (format[at] != '%') {
      out.push_back(format[at]);
      continue;
    }
    std::string conversion = "%";
    if (at + 1 < format.size() && format[at + 1] == '-') conversion.push_back(format[++at]);  // glibc: without padding
    const char letter = at + 1 < format.size() ? format[++at] : '\0';
    if (kKnown.find(letter) == std::string_view::npos) {
      runtime_.fail_unsupported(letter == '\0' ? "strftime_now: a lone '%'" : str("strftime_now: '%", letter, "'"));
    }
    conversion.push_back(letter);
    char buffer[128];
    out.append(buffer, std::strftime(buffer, sizeof buffer, conversion.c_str(), &*now_));
    runtime_.spend(1);
  }
  return runtime_.text(std::move(out));
}

}  // namespace firstlight::jinja

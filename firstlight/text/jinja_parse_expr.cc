// SPDX-License-Identifier: Apache-2.0
// Expressions, lowest precedence first.
#include <array>
#include <utility>

#include "firstlight/base/str.h"
#include "firstlight/text/jinja_filters.h"
#include "firstlight/text/jinja_parser.h"

namespace firstlight::jinja {

ExprPtr Parser::make(ExprKind kind) const {
  auto expr = std::make_unique<Expr>();
  expr->kind = kind;
  expr->line = current().line;
  return expr;
}

namespace {

void join(Expr& chain, Op op, ExprPtr operand) {
  chain.ops.push_back(op);
  chain.items.push_back(std::move(operand));
}

template <size_t n>
const Op* find_op(const std::array<std::pair<std::string_view, Op>, n>& table, const Token& token) {
  if (token.kind != TokenKind::op) return nullptr;
  for (const auto& [text, op] : table) {
    if (token.text == text) return &op;
  }
  return nullptr;
}

using OpName = std::pair<std::string_view, Op>;
constexpr std::array<OpName, 6> kComparisons{{{"==", Op::equal},
                                              {"!=", Op::not_equal},
                                              {"<", Op::less},
                                              {"<=", Op::less_equal},
                                              {">", Op::greater},
                                              {">=", Op::greater_equal}}};
constexpr std::array<OpName, 2> kSums{{{"+", Op::add}, {"-", Op::subtract}}};
constexpr std::array<OpName, 4> kProducts{
    {{"*", Op::multiply}, {"/", Op::divide}, {"//", Op::floor_divide}, {"%", Op::modulo}}};
constexpr std::array<OpName, 1> kPowers{{{"**", Op::power}}};

}  // namespace

ExprPtr Parser::parse_tuple(bool with_condition, bool may_be_empty) {
  ExprPtr tuple = make(ExprKind::tuple);
  const auto at_end = [&] {
    return current().kind == TokenKind::output_end || current().kind == TokenKind::block_end || at_op(")") ||
           at_name("recursive");
  };
  bool is_tuple = false;
  while (!at_end()) {
    tuple->items.push_back(parse_expression(with_condition));
    if (!skip_op(",")) break;
    is_tuple = true;
  }
  if (is_tuple) return tuple;
  if (!tuple->items.empty()) return std::move(tuple->items.front());
  if (!may_be_empty) fail("an expression");
  return tuple;
}

ExprPtr Parser::parse_expression(bool with_condition) {
  const Nesting nesting(*this);
  return with_condition ? parse_conditional() : parse_or();
}

ExprPtr Parser::parse_conditional() {
  const size_t n_unknown = unknown_.size();
  ExprPtr expr = parse_or();
  if (!at_name("if")) return expr;
  while (skip_name("if")) {
    ExprPtr conditional = make(ExprKind::conditional);
    conditional->items.push_back(parse_or());
    conditional->items.push_back(std::move(expr));
    if (skip_name("else")) {
      const Nesting nesting(*this);
      conditional->items.push_back(parse_conditional());
    }
    expr = std::move(conditional);
  }
  unknown_.resize(n_unknown);  // reached on a condition only
  return expr;
}

ExprPtr Parser::parse_or() {
  ExprPtr expr = parse_and();
  if (!at_name("or")) return expr;
  ExprPtr chain = make(ExprKind::logical_or);
  chain->items.push_back(std::move(expr));
  while (skip_name("or")) chain->items.push_back(parse_and());
  return chain;
}

ExprPtr Parser::parse_and() {
  ExprPtr expr = parse_not();
  if (!at_name("and")) return expr;
  ExprPtr chain = make(ExprKind::logical_and);
  chain->items.push_back(std::move(expr));
  while (skip_name("and")) chain->items.push_back(parse_not());
  return chain;
}

ExprPtr Parser::parse_not() {
  if (!at_name("not")) return parse_compare();
  const Nesting nesting(*this);
  ExprPtr expr = make(ExprKind::logical_not);
  next();
  expr->items.push_back(parse_not());
  return expr;
}

ExprPtr Parser::parse_compare() {
  ExprPtr expr = parse_sum();
  ExprPtr chain;
  while (true) {
    Op op = Op::in;
    const bool not_in = at_name("not") && tokens_[at_ + 1].kind == TokenKind::name && tokens_[at_ + 1].text == "in";
    if (const Op* found = find_op(kComparisons, current()))
      op = *found;
    else if (not_in)
      op = Op::not_in;
    else if (!at_name("in"))
      break;
    if (!chain) {
      chain = make(ExprKind::compare);
      chain->items.push_back(std::move(expr));
    }
    next();
    if (not_in) next();
    join(*chain, op, parse_sum());
  }
  return chain ? std::move(chain) : std::move(expr);
}

ExprPtr Parser::parse_sum() {
  ExprPtr expr = parse_concat();
  if (!find_op(kSums, current())) return expr;
  ExprPtr chain = make(ExprKind::arithmetic);
  chain->items.push_back(std::move(expr));
  while (const Op* op = find_op(kSums, current())) {
    next();
    join(*chain, *op, parse_concat());
  }
  return chain;
}

ExprPtr Parser::parse_concat() {
  ExprPtr expr = parse_product();
  if (!at_op("~")) return expr;
  ExprPtr chain = make(ExprKind::concat);
  chain->items.push_back(std::move(expr));
  while (skip_op("~")) chain->items.push_back(parse_product());
  return chain;
}

ExprPtr Parser::parse_product() {
  ExprPtr expr = parse_power();
  if (!find_op(kProducts, current())) return expr;
  ExprPtr chain = make(ExprKind::arithmetic);
  chain->items.push_back(std::move(expr));
  while (const Op* op = find_op(kProducts, current())) {
    next();
    join(*chain, *op, parse_power());
  }
  return chain;
}

ExprPtr Parser::parse_power() {
  ExprPtr expr = parse_unary(true);
  if (!find_op(kPowers, current())) return expr;
  ExprPtr chain = make(ExprKind::arithmetic);
  chain->items.push_back(std::move(expr));
  while (const Op* op = find_op(kPowers, current())) {
    next();
    join(*chain, *op, parse_unary(true));
  }
  return chain;
}

ExprPtr Parser::parse_unary(bool with_filters) {
  ExprPtr expr;
  if (at_op("-") || at_op("+")) {
    const Nesting nesting(*this);
    expr = make(at_op("-") ? ExprKind::negative : ExprKind::positive);
    next();
    expr->items.push_back(parse_unary(false));
  } else {
    expr = parse_primary();
  }
  expr = parse_postfix(std::move(expr));
  return with_filters ? parse_filters_and_tests(std::move(expr)) : std::move(expr);
}

ExprPtr Parser::parse_primary() {
  const Token& token = current();
  ExprPtr expr = make(ExprKind::literal);
  switch (token.kind) {
    case TokenKind::name:
      next();
      if (token.text == "true" || token.text == "True")
        expr->value = true;
      else if (token.text == "false" || token.text == "False")
        expr->value = false;
      else if (token.text == "none" || token.text == "None")
        expr->value = None{};
      else {
        expr->kind = ExprKind::name;
        expr->name = token.text;
      }
      return expr;
    case TokenKind::string: {
      std::string text;
      while (current().kind == TokenKind::string) text += next().text;
      expr->value = make_text(std::move(text));
      return expr;
    }
    case TokenKind::integer:
      expr->value = next().integer;
      return expr;
    case TokenKind::real:
      expr->value = next().real;
      return expr;
    default:
      break;
  }
  if (at_op("[")) return parse_list();
  if (at_op("{")) return parse_dict();
  if (!skip_op("(")) fail("an expression");
  expr = parse_tuple(true, true);
  expect_op(")");
  return expr;
}

ExprPtr Parser::parse_list() {
  ExprPtr list = make(ExprKind::list);
  expect_op("[");
  while (!at_op("]")) {
    if (!list->items.empty()) expect_op(",");
    if (at_op("]")) break;
    list->items.push_back(parse_expression());
  }
  expect_op("]");
  return list;
}

ExprPtr Parser::parse_dict() {
  ExprPtr dict = make(ExprKind::dict);
  expect_op("{");
  while (!at_op("}")) {
    if (!dict->items.empty()) expect_op(",");
    if (at_op("}")) break;
    dict->items.push_back(parse_expression());
    expect_op(":");
    dict->items.push_back(parse_expression());
  }
  expect_op("}");
  return dict;
}

ExprPtr Parser::chained(ExprPtr expr, Suffix suffix) const {
  if (expr->kind != ExprKind::chain) {
    ExprPtr chain = make(ExprKind::chain);
    chain->line = expr->line;
    chain->items.push_back(std::move(expr));
    expr = std::move(chain);
  }
  expr->suffixes.push_back(std::move(suffix));
  return expr;
}

ExprPtr Parser::parse_postfix(ExprPtr expr) {
  while (at_op(".") || at_op("[") || at_op("(")) expr = chained(std::move(expr), parse_subscript());
  return expr;
}

ExprPtr Parser::parse_filters_and_tests(ExprPtr expr) {
  while (true) {
    if (skip_op("|"))
      expr = chained(std::move(expr), parse_filter());
    else if (skip_name("is"))
      expr = chained(std::move(expr), parse_test());
    else if (at_op("("))
      expr = chained(std::move(expr), parse_subscript());
    else
      return expr;
  }
}

// .name, .0, [index], [start:stop:step] or a call.
Suffix Parser::parse_subscript() {
  Suffix out;
  out.line = current().line;
  if (at_op("(")) {
    out.kind = Suffix::Kind::call;
    out.arguments = parse_arguments();
    return out;
  }
  if (skip_op(".")) {
    if (current().kind == TokenKind::integer) {
      out.kind = Suffix::Kind::item;
      out.start = make(ExprKind::literal);
      out.start->value = next().integer;
    } else {
      out.name = expect_any_name();
    }
    return out;
  }
  expect_op("[");
  out.kind = Suffix::Kind::item;
  if (!at_op(":")) out.start = parse_expression();
  if (skip_op(":")) {
    out.kind = Suffix::Kind::slice;
    if (!at_op(":") && !at_op("]")) out.stop = parse_expression();
    if (skip_op(":") && !at_op("]")) out.step = parse_expression();
  }
  if (at_op(",")) syntax_error(current().line, "a subscript of several parts is not supported");
  expect_op("]");
  return out;
}

Suffix Parser::parse_filter() {
  Suffix out;
  out.line = current().line;
  out.kind = Suffix::Kind::filter;
  out.name = expect_any_name();
  while (skip_op(".")) out.name += "." + expect_any_name();
  if (!is_known_filter(out.name)) {
    unknown_.push_back(str("chat template line ", out.line, ": the filter '", out.name, "' is not supported"));
  }
  if (at_op("(")) out.arguments = parse_arguments();
  return out;
}

Suffix Parser::parse_test() {
  Suffix out;
  out.line = current().line;
  out.kind = Suffix::Kind::test;
  out.negated = skip_name("not");
  out.name = expect_any_name();
  while (skip_op(".")) out.name += "." + expect_any_name();
  if (!is_known_test(out.name)) {
    unknown_.push_back(str("chat template line ", out.line, ": the test '", out.name, "' is not supported"));
  }
  if (at_op("(")) {
    out.arguments = parse_arguments();
    return out;
  }
  const TokenKind kind = current().kind;
  const bool has_argument = kind == TokenKind::name || kind == TokenKind::string || kind == TokenKind::integer ||
                            kind == TokenKind::real || at_op("[") || at_op("{");
  if (!has_argument || at_name("else") || at_name("or") || at_name("and")) return out;
  if (at_name("is")) syntax_error(current().line, "tests with 'is' cannot be chained");
  const Nesting nesting(*this);
  out.arguments.push_back({Argument::Kind::positional, "", parse_postfix(parse_primary())});
  return out;
}

std::vector<Argument> Parser::parse_arguments() {
  std::vector<Argument> out;
  const int line = current().line;
  Argument::Kind latest = Argument::Kind::positional;
  expect_op("(");
  while (!at_op(")")) {
    if (!out.empty()) expect_op(",");
    if (at_op(")")) break;
    Argument argument;
    if (skip_op("*")) {
      argument.kind = Argument::Kind::star;
    } else if (skip_op("**")) {
      argument.kind = Argument::Kind::double_star;
    } else if (current().kind == TokenKind::name && tokens_[at_ + 1].kind == TokenKind::op &&
               tokens_[at_ + 1].text == "=") {
      argument.kind = Argument::Kind::keyword;
      argument.name = next().text;
      next();
    }
    // Keywords may stand before *arguments; everything else goes by this order.
    const bool ordered = argument.kind == Argument::Kind::star          ? latest <= Argument::Kind::keyword
                         : argument.kind == Argument::Kind::keyword     ? latest != Argument::Kind::double_star
                         : argument.kind == Argument::Kind::double_star ? latest != Argument::Kind::double_star
                                                                        : latest == Argument::Kind::positional;
    if (!ordered) syntax_error(line, "a call's arguments stand in the wrong order");
    latest = argument.kind == Argument::Kind::keyword && latest == Argument::Kind::star ? latest : argument.kind;
    argument.value = parse_expression();
    out.push_back(std::move(argument));
  }
  expect_op(")");
  return out;
}

}  // namespace firstlight::jinja

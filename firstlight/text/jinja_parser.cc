// SPDX-License-Identifier: Apache-2.0
#include "firstlight/text/jinja_parser.h"

#include <algorithm>
#include <utility>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"

namespace firstlight::jinja {

Block parse(std::string_view source, int max_depth) { return Parser(tokenize(source), max_depth).parse_template(); }

bool Parser::skip_op(std::string_view op) {
  if (!at_op(op)) return false;
  next();
  return true;
}

bool Parser::skip_name(std::string_view name) {
  if (!at_name(name)) return false;
  next();
  return true;
}

void Parser::expect_op(std::string_view op) {
  if (!skip_op(op)) fail(str("'", op, "'"));
}

void Parser::expect_name(std::string_view name) {
  if (!skip_name(name)) fail(str("'", name, "'"));
}

std::string Parser::expect_any_name() {
  if (current().kind != TokenKind::name) fail("a name");
  return next().text;
}

void Parser::expect(TokenKind kind) {
  if (current().kind != kind) fail(kind == TokenKind::block_end ? "'%}'" : "'}}'");
  next();
}

void Parser::fail(std::string_view expected) const {
  const Token& token = current();
  std::string found;
  switch (token.kind) {
    case TokenKind::data:
      found = "text";
      break;
    case TokenKind::output_begin:
      found = "'{{'";
      break;
    case TokenKind::output_end:
      found = "'}}'";
      break;
    case TokenKind::block_begin:
      found = "'{%'";
      break;
    case TokenKind::block_end:
      found = "'%}'";
      break;
    case TokenKind::string:
      found = "a string";
      break;
    case TokenKind::integer:
    case TokenKind::real:
    case TokenKind::name:
    case TokenKind::op:
      found = str("'", token.text, "'");
      break;
    case TokenKind::end:
      found = "the end of the template";
      break;
  }
  syntax_error(token.line, str("found ", found, ", expected ", expected));
}

Block Parser::parse_template() {
  Block block = parse_until({});
  if (current().kind != TokenKind::end) fail("the end of the template");
  if (!unknown_.empty()) throw Error(ErrorKind::unsupported, unknown_.front());
  return block;
}

// Ends at the template's end, or behind the "{%" in front of one of the words.
Block Parser::parse_until(std::initializer_list<std::string_view> ends) {
  const Nesting nesting(*this);
  Block block;
  while (current().kind != TokenKind::end) {
    const int line = current().line;
    if (current().kind == TokenKind::block_begin) {
      next();
      if (std::any_of(ends.begin(), ends.end(), [&](std::string_view word) { return at_name(word); })) return block;
      block.push_back(parse_statement());
      block.back()->line = line;
      expect(TokenKind::block_end);
      continue;
    }
    auto statement = std::make_unique<Statement>();
    statement->line = line;
    if (current().kind == TokenKind::data) {
      statement->kind = StatementKind::text;
      statement->text = next().text;
    } else {
      expect(TokenKind::output_begin);
      statement->kind = StatementKind::output;
      statement->expr = parse_tuple(true, false);
      expect(TokenKind::output_end);
    }
    block.push_back(std::move(statement));
  }
  if (ends.size() != 0) fail(str("'{% ", *(ends.end() - 1), " %}'"));
  return block;
}

Block Parser::parse_body(std::initializer_list<std::string_view> ends) {
  skip_op(":");
  expect(TokenKind::block_end);
  return parse_until(ends);
}

Block Parser::parse_loop_body(std::initializer_list<std::string_view> ends, bool in_loop) {
  const bool outer = std::exchange(in_loop_, in_loop);
  Block block = parse_body(ends);
  in_loop_ = outer;
  return block;
}

std::unique_ptr<Statement> Parser::parse_statement() {
  auto out = std::make_unique<Statement>();
  const int line = current().line;
  const std::string tag = expect_any_name();
  if (tag == "if") {
    parse_if(*out);
  } else if (tag == "for") {
    parse_for(*out);
  } else if (tag == "set") {
    parse_set(*out);
  } else if (tag == "macro") {
    parse_macro(*out);
  } else if (tag == "call") {
    parse_call_block(*out);
  } else if (tag == "with") {
    parse_with(*out);
  } else if (tag == "generation") {
    out->kind = StatementKind::scope;
    out->body = parse_loop_body({"endgeneration"}, false);
    next();
  } else if (tag == "filter") {
    out->kind = StatementKind::filter_block;
    out->filters.push_back(parse_filter());
    while (skip_op("|")) out->filters.push_back(parse_filter());
    out->body = parse_loop_body({"endfilter"}, false);
    next();
  } else if (tag == "break" || tag == "continue") {
    if (!in_loop_) syntax_error(line, str("'", tag, "' stands outside of a loop"));
    out->kind = tag == "break" ? StatementKind::break_ : StatementKind::continue_;
  } else if (tag.starts_with("end") || tag == "else" || tag == "elif") {
    syntax_error(line, str("unexpected '{% ", tag, " %}'"));
  } else {
    throw Error(ErrorKind::unsupported, str("chat template line ", line, ": the tag '", tag, "' is not supported"));
  }
  return out;
}

void Parser::parse_if(Statement& out) {
  out.kind = StatementKind::if_;
  const size_t n_unknown = unknown_.size();
  while (true) {
    Branch branch;
    branch.test = parse_tuple(false, false);
    branch.body = parse_body({"elif", "else", "endif"});
    out.branches.push_back(std::move(branch));
    if (skip_name("elif")) continue;
    if (skip_name("else")) {
      out.branches.push_back({nullptr, parse_body({"endif"})});
    }
    break;
  }
  expect_name("endif");
  unknown_.resize(n_unknown);  // reached on a condition only
}

void Parser::parse_for(Statement& out) {
  out.kind = StatementKind::for_;
  out.target = parse_target(false, true);
  expect_name("in");
  out.expr = parse_tuple(false, false);
  if (skip_name("if")) out.condition = parse_expression();
  if (at_name("recursive")) {
    throw Error(ErrorKind::unsupported,
                str("chat template line ", current().line, ": recursive loops are not supported"));
  }
  out.body = parse_loop_body({"endfor", "else"}, true);
  if (skip_name("else")) out.otherwise = parse_body({"endfor"});
  expect_name("endfor");
}

void Parser::parse_set(Statement& out) {
  out.target = parse_target(true, false);
  if (skip_op("=")) {
    out.kind = StatementKind::set;
    out.expr = parse_tuple(true, false);
    return;
  }
  out.kind = StatementKind::set_block;
  while (skip_op("|")) out.filters.push_back(parse_filter());
  out.body = parse_loop_body({"endset"}, false);
  next();
}

void Parser::parse_signature(Statement& out) {
  expect_op("(");
  while (!at_op(")")) {
    if (!out.parameters.empty()) expect_op(",");
    Parameter parameter;
    parameter.name = expect_any_name();
    if (skip_op("="))
      parameter.fallback = parse_expression();
    else if (!out.parameters.empty() && out.parameters.back().fallback) {
      syntax_error(current().line, "a parameter without default follows one with default");
    }
    out.parameters.push_back(std::move(parameter));
  }
  expect_op(")");
}

void Parser::parse_macro(Statement& out) {
  out.kind = StatementKind::macro;
  out.text = expect_any_name();
  parse_signature(out);
  out.body = parse_loop_body({"endmacro"}, false);
  next();
}

void Parser::parse_call_block(Statement& out) {
  out.kind = StatementKind::call_block;
  if (at_op("(")) parse_signature(out);
  out.expr = parse_expression();
  if (out.expr->kind != ExprKind::chain || out.expr->suffixes.back().kind != Suffix::Kind::call) {
    syntax_error(current().line, "expected a call behind 'call'");
  }
  out.body = parse_loop_body({"endcall"}, false);
  next();
}

void Parser::parse_with(Statement& out) {
  out.kind = StatementKind::with;
  while (current().kind != TokenKind::block_end) {
    if (!out.parameters.empty()) expect_op(",");
    Parameter parameter;
    parameter.name = expect_any_name();
    expect_op("=");
    parameter.fallback = parse_expression();
    out.parameters.push_back(std::move(parameter));
  }
  out.body = parse_body({"endwith"});
  next();
}

Target Parser::parse_target(bool with_namespace, bool ends_at_in) {
  const Nesting nesting(*this);
  Target out;
  const auto at_end = [&] {
    return current().kind == TokenKind::block_end || at_op(")") || (ends_at_in && at_name("in"));
  };
  while (true) {
    if (out.is_tuple && at_end()) break;
    out.items.push_back(parse_one_target(with_namespace));
    if (!skip_op(",")) break;
    out.is_tuple = true;
  }
  if (out.is_tuple) return out;
  Target only = std::move(out.items.front());
  return only;
}

Target Parser::parse_one_target(bool with_namespace) {
  if (skip_op("(")) {
    Target inner = parse_target(false, false);
    expect_op(")");
    return inner;
  }
  Target out;
  const int line = current().line;
  out.name = expect_any_name();
  for (const std::string_view word : {"true", "false", "none", "True", "False", "None"}) {
    if (out.name == word) syntax_error(line, str("cannot assign to '", word, "'"));
  }
  if (with_namespace && skip_op(".")) out.attribute = expect_any_name();
  return out;
}

}  // namespace firstlight::jinja

// SPDX-License-Identifier: Apache-2.0
// Tokens → statements, by Jinja2's grammar. Statements in jinja_parser.cc, expressions in jinja_parse_expr.cc.
#pragma once
#include <initializer_list>
#include <string_view>
#include <vector>

#include "firstlight/text/jinja_ast.h"
#include "firstlight/text/jinja_lexer.h"

namespace firstlight::jinja {

/// Throws Error{bad_input} with the line for a syntax error and for nesting beyond max_depth, Error{unsupported} for an
/// unknown tag, and for an unknown filter or test that is reached unconditionally (inside an `if` it fails when it is
/// reached).
Block parse(std::string_view source, int max_depth);

class Parser {
 public:
  Parser(std::vector<Token> tokens, int max_depth) : tokens_(std::move(tokens)), max_depth_(max_depth) {}
  Block parse_template();

 private:
  struct Nesting;  // counts one level while it lives

  const Token& current() const { return tokens_[at_]; }
  const Token& next() { return tokens_[at_ + 1 < tokens_.size() ? at_++ : at_]; }
  bool at_op(std::string_view op) const { return current().kind == TokenKind::op && current().text == op; }
  bool at_name(std::string_view name) const { return current().kind == TokenKind::name && current().text == name; }
  bool skip_op(std::string_view op);
  bool skip_name(std::string_view name);
  void expect_op(std::string_view op);
  void expect_name(std::string_view name);
  std::string expect_any_name();
  void expect(TokenKind kind);
  [[noreturn]] void fail(std::string_view expected) const;

  Block parse_until(std::initializer_list<std::string_view> ends);
  Block parse_body(std::initializer_list<std::string_view> ends);
  Block parse_loop_body(std::initializer_list<std::string_view> ends, bool in_loop);
  std::unique_ptr<Statement> parse_statement();
  void parse_for(Statement& out);
  void parse_if(Statement& out);
  void parse_set(Statement& out);
  void parse_macro(Statement& out);
  void parse_call_block(Statement& out);
  void parse_with(Statement& out);
  void parse_signature(Statement& out);
  Target parse_target(bool with_namespace, bool ends_at_in);
  Target parse_one_target(bool with_namespace);

  ExprPtr parse_tuple(bool with_condition, bool may_be_empty);
  ExprPtr parse_expression(bool with_condition = true);
  ExprPtr parse_conditional();
  ExprPtr parse_or();
  ExprPtr parse_and();
  ExprPtr parse_not();
  ExprPtr parse_compare();
  ExprPtr parse_sum();
  ExprPtr parse_concat();
  ExprPtr parse_product();
  ExprPtr parse_power();
  ExprPtr parse_unary(bool with_filters);
  ExprPtr parse_primary();
  ExprPtr parse_list();
  ExprPtr parse_dict();
  ExprPtr parse_postfix(ExprPtr expr);
  ExprPtr parse_filters_and_tests(ExprPtr expr);
  Suffix parse_subscript();
  Suffix parse_filter();
  Suffix parse_test();
  std::vector<Argument> parse_arguments();
  ExprPtr make(ExprKind kind) const;
  ExprPtr chained(ExprPtr expr, Suffix suffix) const;

  std::vector<Token> tokens_;
  int max_depth_;
  size_t at_ = 0;
  int depth_ = 0;
  std::vector<std::string> unknown_;  // messages about unknown filters and tests that are reached unconditionally
  bool in_loop_ = false;
};

struct Parser::Nesting {
  explicit Nesting(Parser& parser) : parser_(parser) {
    if (++parser_.depth_ <= parser_.max_depth_) return;
    --parser_.depth_;
    syntax_error(parser_.current().line, "nested too deeply");
  }
  ~Nesting() { --parser_.depth_; }
  Nesting(const Nesting&) = delete;
  Nesting& operator=(const Nesting&) = delete;

 private:
  Parser& parser_;
};

}  // namespace firstlight::jinja

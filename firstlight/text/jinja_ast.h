// SPDX-License-Identifier: Apache-2.0
// What a chat template is after parsing. Chains (a + b + c, x.y|f(z)) are flat lists, so that depth is nesting only.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "firstlight/text/jinja_value.h"

namespace firstlight::jinja {

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

struct Argument {
  enum class Kind { positional, keyword, star, double_star } kind = Kind::positional;
  std::string name;  ///< of a keyword argument
  ExprPtr value;
};

/// One step behind a value: .name, [index], [start:stop:step], (…), |name(…), is [not] name(…).
struct Suffix {
  enum class Kind { attribute, item, slice, call, filter, test } kind = Kind::attribute;
  int line = 1;
  std::string name;
  bool negated = false;
  ExprPtr start, stop, step;  ///< item: start
  std::vector<Argument> arguments;
};

enum class ExprKind {
  literal,
  name,
  list,
  tuple,
  dict,
  chain,
  negative,
  positive,
  logical_not,
  logical_and,
  logical_or,
  arithmetic,
  concat,
  compare,
  conditional
};
enum class Op {
  add,
  subtract,
  multiply,
  divide,
  floor_divide,
  modulo,
  power,
  equal,
  not_equal,
  less,
  less_equal,
  greater,
  greater_equal,
  in,
  not_in
};

struct Expr {
  ExprKind kind = ExprKind::literal;
  int line = 1;
  Value value;                 ///< literal
  std::string name;            ///< name
  std::vector<ExprPtr> items;  ///< operands; dict: key, value, key, value, …; conditional: test, then[, else]
  std::vector<Op> ops;         ///< arithmetic, compare: ops[i] stands between items[i] and items[i + 1]
  std::vector<Suffix> suffixes;
};

/// What an assignment writes to: a name, namespace.attribute, or a tuple of them.
struct Target {
  std::string name, attribute;
  bool is_tuple = false;
  std::vector<Target> items;
};

struct Statement;
using Block = std::vector<std::unique_ptr<Statement>>;

struct Parameter {
  std::string name;
  ExprPtr fallback;  ///< null: undefined
};

struct Branch {
  ExprPtr test;  ///< null: else
  Block body;
};

enum class StatementKind {
  text,
  output,
  if_,
  for_,
  set,
  set_block,
  macro,
  call_block,
  filter_block,
  with,
  scope,
  break_,
  continue_
};

struct Statement {
  StatementKind kind = StatementKind::text;
  int line = 1;
  std::string text;                   ///< text; a macro's name
  ExprPtr expr;                       ///< output, set; for_: what is iterated; call_block: the call
  ExprPtr condition;                  ///< for_: the loop filter
  Target target;                      ///< for_, set, set_block
  std::vector<Branch> branches;       ///< if_
  std::vector<Parameter> parameters;  ///< macro, call_block; with: names and values
  std::vector<Suffix> filters;        ///< set_block, filter_block
  Block body, otherwise;
};

}  // namespace firstlight::jinja

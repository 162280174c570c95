// SPDX-License-Identifier: Apache-2.0
// Walks a template's statements. Statements and scopes in jinja_eval.cc, expressions and calls in jinja_eval_expr.cc.
#pragma once
#include <ctime>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "firstlight/text/jinja_ast.h"
#include "firstlight/text/jinja_runtime.h"

namespace firstlight::jinja {

/// Variables of a loop's body, a macro's call or the template; an inner one sees the outer ones and never changes them.
struct Scope {
  std::shared_ptr<Scope> parent;
  std::vector<std::pair<std::string_view, Value>> variables;  ///< names lie in the syntax tree
  int loop_depth = 0;
};
using ScopePtr = std::shared_ptr<Scope>;

struct Macro {
  const Statement* definition = nullptr;
  ScopePtr scope;
};

class Evaluator {
 public:
  /// `now`: local time for strftime_now(); null: the system's.
  Evaluator(const Limits& limits, std::optional<std::tm> now);
  ~Evaluator();
  Evaluator(const Evaluator&) = delete;
  Evaluator& operator=(const Evaluator&) = delete;

  Runtime& runtime() noexcept { return runtime_; }
  void set_global(std::string_view name, Value value);
  std::string render(const Block& block);

 private:
  enum class Flow { next, break_, continue_ };

  Flow execute(const Block& block, const ScopePtr& scope);
  Flow execute(const Statement& statement, const ScopePtr& scope);
  Flow execute_for(const Statement& statement, const ScopePtr& scope);
  Flow execute_with(const Statement& statement, const ScopePtr& scope);
  void execute_call_block(const Statement& statement, const ScopePtr& scope);
  std::string captured(const Block& block, const ScopePtr& scope);
  void write(std::string_view text);
  static ScopePtr inner(const ScopePtr& scope);
  void assign(const Target& target, Value value, const ScopePtr& scope);
  void set(Scope& scope, std::string_view name, Value value);
  Value look_up(std::string_view name, const Scope& scope);
  Macro* make_macro(const Statement& definition, const ScopePtr& scope);

  Value evaluate(const Expr& expr, const ScopePtr& scope);
  Value evaluate_chain(const Expr& expr, const ScopePtr& scope, Macro* caller);
  Value apply(const Suffix& suffix, const Value& value, const ScopePtr& scope, Macro* caller);
  Value evaluate_concat(const Expr& expr, const ScopePtr& scope);
  Value evaluate_dict(const Expr& expr, const ScopePtr& scope);
  bool evaluate_compare(const Expr& expr, const ScopePtr& scope);
  Value optional(const ExprPtr& expr, const ScopePtr& scope);
  CallArguments arguments_of(const Suffix& suffix, const ScopePtr& scope);
  Value call(const Value& callee, CallArguments arguments);
  Value call_macro(const Macro& macro, CallArguments arguments);
  Value call_function(Function function, CallArguments arguments);
  Value make_range(const CallArguments& arguments);
  Value make_dict(CallArguments arguments);
  Value make_namespace(CallArguments arguments);
  Value format_time(const std::string& format);

  Runtime runtime_;
  std::optional<std::tm> now_;
  std::vector<std::pair<std::string_view, Value>> globals_;
  std::string* out_ = nullptr;
  // Macros and namespaces may refer to each other in circles; they live until the rendering ends and are emptied then.
  std::deque<Macro> macros_;
  std::deque<Namespace> namespaces_;
};

}  // namespace firstlight::jinja

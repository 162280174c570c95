// SPDX-License-Identifier: Apache-2.0
#include "firstlight/text/jinja_eval.h"

#include "firstlight/base/str.h"
#include "firstlight/text/jinja_filters.h"

namespace firstlight::jinja {

Evaluator::Evaluator(const Limits& limits, std::optional<std::tm> now) : runtime_(limits), now_(now) {
  set_global("range", Function::range);
  set_global("dict", Function::dict);
  set_global("namespace", Function::namespace_);
  set_global("raise_exception", Function::raise_exception);
  set_global("strftime_now", Function::strftime_now);
}

Evaluator::~Evaluator() {
  for (Macro& macro : macros_) macro.scope->variables.clear();
  for (Namespace& each : namespaces_) each.attributes.clear();
}

void Evaluator::set_global(std::string_view name, Value value) { globals_.emplace_back(name, std::move(value)); }

std::string Evaluator::render(const Block& block) {
  std::string out;
  out_ = &out;
  execute(block, std::make_shared<Scope>());
  return out;
}

void Evaluator::write(std::string_view text) {
  runtime_.spend_bytes(text.size());
  if (text.size() > runtime_.limits().max_output_bytes - std::min(out_->size(), runtime_.limits().max_output_bytes)) {
    runtime_.fail(str("makes too much text: more than ", runtime_.limits().max_output_bytes, " bytes"));
  }
  out_->append(text);
}

ScopePtr Evaluator::inner(const ScopePtr& scope) {
  auto out = std::make_shared<Scope>();
  out->parent = scope;
  out->loop_depth = scope->loop_depth;
  return out;
}

void Evaluator::set(Scope& scope, std::string_view name, Value value) {
  runtime_.spend(static_cast<int64_t>(scope.variables.size() / 16));
  for (auto& [known, slot] : scope.variables) {
    if (known == name) {
      slot = std::move(value);
      return;
    }
  }
  scope.variables.emplace_back(name, std::move(value));
}

Value Evaluator::look_up(std::string_view name, const Scope& scope) {
  for (const Scope* at = &scope; at; at = at->parent.get()) {
    runtime_.spend(static_cast<int64_t>(at->variables.size() / 16));
    for (const auto& [known, value] : at->variables) {
      if (known == name) return value;
    }
  }
  for (const auto& [known, value] : globals_) {
    if (known == name) return value;
  }
  return Undefined{std::make_shared<const std::string>(name.substr(0, 100))};
}

void Evaluator::assign(const Target& target, Value value, const ScopePtr& scope) {
  if (target.is_tuple) {
    Values items = runtime_.iterate(value);
    if (items.size() != target.items.size()) {
      runtime_.fail(str("unpacking: found ", items.size(), " values, expected ", target.items.size()));
    }
    for (size_t i = 0; i < items.size(); ++i) assign(target.items[i], std::move(items[i]), scope);
    return;
  }
  if (target.attribute.empty()) return set(*scope, target.name, std::move(value));
  const Value owner = look_up(target.name, *scope);
  const auto* found = get_if<Namespace*>(owner);
  if (!found)
    runtime_.fail(str("'", target.name, "' is a ", type_name(owner), ": only a namespace's attributes can be set"));
  if (target.attribute.starts_with("_")) runtime_.fail(str("the attribute '", target.attribute, "' begins with '_'"));
  auto& attributes = (*found)->attributes;
  runtime_.spend(static_cast<int64_t>(attributes.size() / 16));
  for (auto& [known, slot] : attributes) {
    if (known == target.attribute) {
      slot = std::move(value);
      return;
    }
  }
  attributes.emplace_back(target.attribute, std::move(value));
}

Macro* Evaluator::make_macro(const Statement& definition, const ScopePtr& scope) {
  runtime_.spend(4);
  return &macros_.emplace_back(Macro{&definition, scope});
}

std::string Evaluator::captured(const Block& block, const ScopePtr& scope) {
  struct Redirect {  // puts the outer sink back also when the body throws
    std::string*& slot;
    std::string* outer;
    ~Redirect() { slot = outer; }
  };
  std::string text;
  const Redirect redirect{out_, out_};
  out_ = &text;
  execute(block, scope);
  return text;
}

Evaluator::Flow Evaluator::execute(const Block& block, const ScopePtr& scope) {
  const Runtime::Level level(runtime_);
  for (const auto& statement : block) {
    runtime_.line = statement->line;
    runtime_.spend(1);
    const Flow flow = execute(*statement, scope);
    if (flow != Flow::next) return flow;
  }
  return Flow::next;
}

Evaluator::Flow Evaluator::execute(const Statement& statement, const ScopePtr& scope) {
  switch (statement.kind) {
    case StatementKind::text:
      write(statement.text);
      break;
    case StatementKind::output:
      write(runtime_.to_text(evaluate(*statement.expr, scope)));
      break;
    case StatementKind::if_:
      for (const Branch& branch : statement.branches) {
        if (!branch.test || truth(evaluate(*branch.test, scope))) return execute(branch.body, scope);
      }
      break;
    case StatementKind::for_:
      return execute_for(statement, scope);
    case StatementKind::set:
      assign(statement.target, evaluate(*statement.expr, scope), scope);
      break;
    case StatementKind::set_block:
    case StatementKind::filter_block: {
      Value value = make_text(captured(statement.body, inner(scope)));
      for (const Suffix& filter : statement.filters) value = apply(filter, value, scope, nullptr);
      if (statement.kind == StatementKind::set_block)
        assign(statement.target, std::move(value), scope);
      else
        write(runtime_.to_text(value));
      break;
    }
    case StatementKind::macro:
      set(*scope, statement.text, make_macro(statement, scope));
      break;
    case StatementKind::call_block:
      execute_call_block(statement, scope);
      break;
    case StatementKind::with:
      return execute_with(statement, scope);
    case StatementKind::scope:
      execute(statement.body, inner(scope));
      break;
    case StatementKind::break_:
      return Flow::break_;
    case StatementKind::continue_:
      return Flow::continue_;
  }
  return Flow::next;
}

Evaluator::Flow Evaluator::execute_for(const Statement& statement, const ScopePtr& scope) {
  Values items = runtime_.iterate(evaluate(*statement.expr, scope));
  if (statement.condition) {
    Values kept;
    for (Value& item : items) {
      runtime_.spend(1);
      const ScopePtr body = inner(scope);
      assign(statement.target, item, body);
      if (truth(evaluate(*statement.condition, body))) kept.push_back(std::move(item));
    }
    items = std::move(kept);
  }
  auto loop = std::make_shared<Loop>();
  loop->depth = runtime_.depth_above(items);
  loop->items = std::make_shared<const Values>(std::move(items));
  loop->loop_depth = scope->loop_depth + 1;
  bool completed =
      false;  // As in Jinja2, `else` also runs when no iteration reached its body's end for break or continue.
  for (; loop->index < loop->items->size(); ++loop->index) {
    runtime_.spend(1);
    const ScopePtr body = inner(scope);
    body->loop_depth = loop->loop_depth;
    set(*body, "loop", loop);
    assign(statement.target, (*loop->items)[loop->index], body);
    const Flow flow = execute(statement.body, body);
    if (flow == Flow::break_) break;
    completed = completed || flow == Flow::next;
  }
  return completed ? Flow::next : execute(statement.otherwise, inner(scope));
}

Evaluator::Flow Evaluator::execute_with(const Statement& statement, const ScopePtr& scope) {
  const ScopePtr body = inner(scope);
  for (const Parameter& each : statement.parameters) set(*body, each.name, evaluate(*each.fallback, scope));
  return execute(statement.body, body);
}

void Evaluator::execute_call_block(const Statement& statement, const ScopePtr& scope) {
  Macro* caller = make_macro(statement, scope);
  write(runtime_.to_text(evaluate_chain(*statement.expr, scope, caller)));
}

Value Evaluator::call_macro(const Macro& macro, CallArguments arguments) {
  const Runtime::Level level(runtime_);
  const Statement& definition = *macro.definition;
  const ScopePtr scope = inner(macro.scope);
  const int line = runtime_.line;
  std::vector<std::string_view> names;
  for (const Parameter& parameter : definition.parameters) names.push_back(parameter.name);
  names.push_back("caller");
  if (arguments.positional.size() >= names.size()) {
    runtime_.fail(str("macro '", definition.text, "' takes ", names.size() - 1, " arguments, found ",
                      arguments.positional.size()));
  }
  std::vector<std::optional<Value>> bound = bind(runtime_, definition.text, arguments, names, 0);
  for (size_t i = 0; i < names.size(); ++i) {
    Value value = Undefined{std::make_shared<const std::string>(names[i])};
    if (bound[i])
      value = std::move(*bound[i]);
    else if (i < definition.parameters.size() && definition.parameters[i].fallback) {
      value = evaluate(*definition.parameters[i].fallback, scope);
    }
    set(*scope, names[i], std::move(value));
  }
  std::string text = captured(definition.body, scope);
  runtime_.line = line;
  return make_text(std::move(text));
}

}  // namespace firstlight::jinja

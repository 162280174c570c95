// SPDX-License-Identifier: Apache-2.0
// What evaluation, filters, tests and methods share: budgets, errors, and Python's operations on values.
#pragma once
#include <cstdint>
#include <ctime>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/text/jinja_ast.h"
#include "firstlight/text/jinja_value.h"

namespace firstlight::jinja {

struct Limits {
  int64_t max_steps = 0;
  int max_depth = 0;
  size_t max_output_bytes = 0;
};

struct CallArguments {
  Values positional;
  std::vector<std::pair<std::string, Value>> keyword;
};

/// One rendering's state apart from variables. Every operation pays for its time in steps and for its text in bytes;
/// what is spent ends the rendering with Error{bad_input}.
class Runtime {
 public:
  explicit Runtime(const Limits& limits)
      : limits_(limits), bytes_left_(static_cast<int64_t>(limits.max_output_bytes) * 8) {}
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  /// The line that messages name.
  int line = 1;

  [[noreturn]] void fail(std::string_view what) const;
  [[noreturn]] void fail_unsupported(std::string_view what) const;
  [[noreturn]] void fail_undefined(const Value& value) const;
  void spend(int64_t steps);
  /// Pays for n bytes of text, before they are made.
  void spend_bytes(size_t n);
  const Limits& limits() const noexcept { return limits_; }

  /// Counts one level of evaluation while it lives.
  class Level {
   public:
    explicit Level(Runtime& runtime);
    ~Level() { --runtime_.depth_; }
    Level(const Level&) = delete;
    Level& operator=(const Level&) = delete;

   private:
    Runtime& runtime_;
  };

  Value text(std::string bytes, bool markup = false);
  Value sequence(Values items, Sequence::Kind kind = Sequence::Kind::list);
  Value generator(Values items);
  Value dict(std::vector<std::pair<Value, Value>> items);
  /// 1 + the deepest; fails beyond the limit.
  int depth_above(const Values& items) const;

  std::string to_text(const Value& value);  ///< str()
  std::string repr(const Value& value);
  bool equal(const Value& a, const Value& b);
  bool compare(Op op, const Value& a, const Value& b);  ///< <, <=, >, >= (and ==, !=)
  bool contains(const Value& container, const Value& value);
  /// Everything that iteration gives; a generator is empty afterwards.
  Values iterate(const Value& value);
  bool is_iterable(const Value& value) const noexcept;
  int64_t length(const Value& value);

  Value attribute(const Value& of, std::string_view name);  ///< of.name
  Value item(const Value& of, const Value& index);          ///< of[index]
  Value slice(const Value& of, const Value& start, const Value& stop, const Value& step);
  Value arithmetic(Op op, const Value& a, const Value& b);
  Value negate(const Value& value, bool negative);

  Value* find(const Dict& dict, const Value& key);
  void expect_hashable(const Value& key) const;
  const std::string& expect_text(const Value& value, std::string_view what) const;
  int64_t expect_integer(const Value& value, std::string_view what) const;

 private:
  Value add(const Value& a, const Value& b);
  Value repeat(const Value& value, int64_t n);
  Value integer_arithmetic(Op op, int64_t a, int64_t b);
  Value real_arithmetic(Op op, double a, double b);
  bool equal_items(const Values& a, const Values& b);
  std::string repr_items(const Values& items);

  Limits limits_;
  int64_t steps_ = 0;
  int64_t bytes_left_;
  int depth_ = 0;
};

/// A function's parameters, filled from positional arguments, then by name; the rest stays null.
std::vector<std::optional<Value>> bind(const Runtime& runtime, std::string_view function, CallArguments& arguments,
                                       const std::vector<std::string_view>& names, size_t n_required);

}  // namespace firstlight::jinja

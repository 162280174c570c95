// SPDX-License-Identifier: Apache-2.0
// Methods of strings, dicts, lists and loops: those of Python that change nothing.
#pragma once
#include <optional>
#include <string_view>

#include "firstlight/text/jinja_runtime.h"

namespace firstlight::jinja {

/// Whether value.name is a method. Methods that change their object do not exist (the sandbox is immutable); one that
/// Python has and this evaluator does not is Error{unsupported}.
bool has_method(Runtime& runtime, const Value& value, std::string_view name);
Value call_method(Runtime& runtime, const Method& method, CallArguments arguments);
/// str.replace(), paid for before the text is made; max_count -1: all.
Value replace_in(Runtime& runtime, const std::string& self, const std::string& from, const std::string& to,
                 int64_t max_count);
/// loop.index and so on; null if there is no such attribute.
std::optional<Value> loop_attribute(Runtime& runtime, const std::shared_ptr<Loop>& loop, std::string_view name);

}  // namespace firstlight::jinja

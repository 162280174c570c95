// SPDX-License-Identifier: Apache-2.0
// Filters (x|name) and tests (x is name), by name.
#pragma once
#include <string_view>

#include "firstlight/text/jinja_runtime.h"

namespace firstlight::jinja {

bool is_known_filter(std::string_view name);
bool is_known_test(std::string_view name);
/// Error{unsupported} naming one that is not known.
Value call_filter(Runtime& runtime, std::string_view name, const Value& input, CallArguments arguments);
bool call_test(Runtime& runtime, std::string_view name, const Value& input, CallArguments arguments);

using Filter = Value (*)(Runtime&, const Value& input, CallArguments&);
/// jinja_list_filters.cc: those that walk sequences. Null if there is no such filter.
Filter find_list_filter(std::string_view name);
/// jinja_json.cc: json.dumps(ensure_ascii=False) as transformers configures the filter.
Value to_json_filter(Runtime& runtime, const Value& input, CallArguments& arguments);

}  // namespace firstlight::jinja

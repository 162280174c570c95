// SPDX-License-Identifier: Apache-2.0
// The library never prints: it hands lines to one function that the program sets.
#pragma once
#include <functional>
#include <string_view>

namespace firstlight {

enum class LogLevel { debug, info, warning };
using LogFn = std::function<void(LogLevel, std::string_view)>;

/// Replaces the sink; an empty function drops every line (the default). Call before other threads run.
void set_log(LogFn sink);
/// May be called from any thread.
void log(LogLevel level, std::string_view line);

}  // namespace firstlight

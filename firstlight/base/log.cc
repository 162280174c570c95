// SPDX-License-Identifier: Apache-2.0
#include "firstlight/base/log.h"

#include <mutex>

namespace firstlight {

namespace {
std::mutex sink_mutex;
LogFn sink;
}  // namespace

void set_log(LogFn new_sink) {
  const std::lock_guard lock(sink_mutex);
  sink = std::move(new_sink);
}

void log(LogLevel level, std::string_view line) {
  const std::lock_guard lock(sink_mutex);
  if (sink) sink(level, line);
}

}  // namespace firstlight

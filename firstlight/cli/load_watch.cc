// SPDX-License-Identifier: Apache-2.0
#include "firstlight/cli/load_watch.h"

#include <unistd.h>

#include <chrono>

#include "firstlight/base/error.h"
#include "firstlight/base/start_thread.h"
#include "firstlight/base/str.h"
#include "firstlight/cli/context.h"
#include "firstlight/cli/interrupt.h"

namespace firstlight::cli {

LoadWatch::LoadWatch(std::string model, double deadline_s, bool json) {
  if (deadline_s <= 0) return;
  const auto last = std::chrono::steady_clock::now() + std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                                                           std::chrono::duration<double>(deadline_s + kGraceSeconds));
  thread_ = start_thread("the deadline", [this, model = std::move(model), deadline_s, json, last] {
    std::unique_lock lock(mutex_);
    if (changed_.wait_until(lock, last, [this] { return ended_; }) || !take_last_word()) return;
    say_failure(json, to_string(ErrorKind::io),
                str("'", model, "' is not loaded within the deadline of ", human_seconds(deadline_s),
                    ": its file system does not answer"));
    _exit(exit_code(ErrorKind::io));
  });
}

LoadWatch::~LoadWatch() {
  end();
  if (thread_.joinable()) thread_.join();
}

void LoadWatch::end() {
  const std::lock_guard lock(mutex_);
  ended_ = true;
  changed_.notify_all();
}

}  // namespace firstlight::cli

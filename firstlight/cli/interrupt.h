// SPDX-License-Identifier: Apache-2.0
// Ctrl-C and SIGTERM as a std::stop_token.
#pragma once
#include <signal.h>

#include <stop_token>

namespace firstlight::cli {

/// Blocks SIGINT and SIGTERM in this thread and those that it starts: one that comes waits for watch_signals().
sigset_t hold_signals();
/// Holds them and starts a thread that waits for them. The first signal requests a stop; a second one, or the first
/// while exit_at_once(true) holds, ends the process with 130 (SIGINT) or 143 (SIGTERM). Call once, before other
/// threads. Throws Error{out_of_memory}.
std::stop_token watch_signals();
/// For commands that sit in a blocking read of standard input.
void exit_at_once(bool on);
/// One answer of a conversation. While it lives, Ctrl-C asks its token to stop and lets the program go on; a second one
/// ends the process. SIGTERM is meant for the program in any case. One at a time.
class Turn {
 public:
  Turn();
  ~Turn();
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;
  std::stop_token token() const { return source_.get_token(); }

 private:
  std::stop_source source_;
};
/// Who ends the process says why; true for the first who asks, who ends it at once: one line is enough where timeout(1)
/// signals twice, or a rank fails whose peers fail with it.
bool take_last_word();
/// 130 or 143, by the signal that came.
int interrupted_exit_code();

}  // namespace firstlight::cli

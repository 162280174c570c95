// SPDX-License-Identifier: Apache-2.0
// Ctrl-C and SIGTERM as a std::stop_token.
#pragma once
#include <stop_token>

namespace firstlight::cli {

/// Blocks SIGINT and SIGTERM in this and all later threads and starts one that waits for them. The first signal
/// requests a stop; a second one, or the first while exit_at_once(true) holds, ends the process with 130 (SIGINT) or
/// 143 (SIGTERM). Call once, before other threads.
std::stop_token watch_signals();
/// For commands that sit in a blocking read of standard input.
void exit_at_once(bool on);
/// 130 or 143, by the signal that came.
int interrupted_exit_code();

}  // namespace firstlight::cli

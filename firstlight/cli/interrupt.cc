// SPDX-License-Identifier: Apache-2.0
#include "firstlight/cli/interrupt.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <string_view>
#include <thread>

#include "firstlight/base/start_thread.h"

namespace firstlight::cli {

namespace {
std::stop_source stop_source;
std::atomic<int> signal_seen{0};
std::atomic<bool> at_once{false};
std::mutex turn_mutex;
std::stop_source* turn = nullptr;  // of the Turn that lives

/// Whether a Turn took the signal.
bool stop_turn() {
  const std::lock_guard lock(turn_mutex);
  return turn != nullptr && turn->request_stop();
}

bool in_turn() {
  const std::lock_guard lock(turn_mutex);
  return turn != nullptr;
}

[[noreturn]] void end_process() {
  std::string_view word = "\nfirstlight: interrupted\n";
  if (::isatty(STDERR_FILENO) == 0) word.remove_prefix(1);  // a terminal stands behind "^C"
  if (take_last_word()) {
    static_cast<void>(!::write(STDERR_FILENO, word.data(), word.size()));
  } else {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));  // who took it is about to say it, and to end
  }
  _exit(interrupted_exit_code());
}
}  // namespace

sigset_t hold_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return signals;
}

std::stop_token watch_signals() {
  const sigset_t signals = hold_signals();
  ::signal(SIGXFSZ, SIG_IGN);  // a file that may not grow is an error of the write, with its name
  start_thread("signals", [signals] {
    for (;;) {
      int number = 0;
      if (sigwait(&signals, &number) != 0) return;
      if (number == SIGINT && stop_turn()) continue;
      const bool again = signal_seen.exchange(number) != 0;
      if (again || at_once.load() || (number == SIGINT && in_turn())) end_process();
      stop_source.request_stop();
    }
  }).detach();
  return stop_source.get_token();
}

Turn::Turn() {
  const std::lock_guard lock(turn_mutex);
  turn = &source_;
}

Turn::~Turn() {
  const std::lock_guard lock(turn_mutex);
  turn = nullptr;
}

bool take_last_word() {
  static std::atomic<bool> taken{false};
  return !taken.exchange(true);
}

void exit_at_once(bool on) { at_once.store(on); }

int interrupted_exit_code() { return signal_seen.load() == SIGTERM ? 143 : 130; }

}  // namespace firstlight::cli

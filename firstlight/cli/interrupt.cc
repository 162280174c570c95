// SPDX-License-Identifier: Apache-2.0
#include "firstlight/cli/interrupt.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <thread>

namespace firstlight::cli {

namespace {
std::stop_source stop_source;
std::atomic<int> signal_seen{0};
std::atomic<bool> at_once{false};
}  // namespace

std::stop_token watch_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  ::signal(SIGXFSZ, SIG_IGN);  // a file that may not grow is an error of the write, with its name
  std::thread([signals] {
    for (;;) {
      int number = 0;
      if (sigwait(&signals, &number) != 0) return;
      const bool again = signal_seen.exchange(number) != 0;
      if (again || at_once.load()) _exit(interrupted_exit_code());
      stop_source.request_stop();
    }
  }).detach();
  return stop_source.get_token();
}

void exit_at_once(bool on) { at_once.store(on); }

int interrupted_exit_code() { return signal_seen.load() == SIGTERM ? 143 : 130; }

}  // namespace firstlight::cli

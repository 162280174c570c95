// SPDX-License-Identifier: Apache-2.0
// firstlight: the program. Signals become a stop token; everything else is in run_program().
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <thread>

#include "firstlight/base/timeline.h"
#include "firstlight/cli/context.h"
#include "firstlight/cli/interrupt.h"

int main(int argc, char** argv) {
  firstlight::seconds_since_exec();  // fixes the moment of exec while little CPU time has passed
  firstlight::cli::Context context;
  context.stop = firstlight::cli::watch_signals();
  const int code = firstlight::cli::run_program(argc, argv, context);
  // Threads that still read, and gigabytes of weights, need no tidy end: the kernel frees them faster (and exit() would
  // run destructors under them).
  _exit(code);
}

// SPDX-License-Identifier: Apache-2.0
// firstlight: the program. Everything is in run_program().
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "firstlight/base/timeline.h"
#include "firstlight/cli/context.h"
#include "firstlight/cli/interrupt.h"

namespace {

/// A file opened later must not become standard input, output or error because they were closed: chat would read the
/// model's weights as messages.
void open_standard_streams() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(fd, F_GETFD) == 0 || errno != EBADF) continue;
    ::open("/dev/null", O_RDONLY);  // takes the lowest number that is free; written to, it is an error as a closed one
  }
}

}  // namespace

int main(int argc, char** argv) {
  firstlight::seconds_since_exec();  // fixes the moment of exec while little CPU time has passed
  firstlight::cli::hold_signals();   // from here on they end with a word, too
  open_standard_streams();
  firstlight::cli::Context context;
  const int code = firstlight::cli::run_program(argc, argv, context);
  // Threads that still read, and gigabytes of weights, need no tidy end: the kernel frees them faster (and exit() would
  // run destructors under them).
  _exit(code);
}

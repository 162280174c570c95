// SPDX-License-Identifier: Apache-2.0
#include "firstlight/base/child.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"

namespace firstlight {

namespace {

constexpr size_t kMostErr = 64u << 10;

struct Pipe {
  int read = -1, write = -1;
  Pipe() {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) throw_errno(errno, "make", "a pipe");
    read = ends[0], write = ends[1];
  }
  ~Pipe() {
    close_write();
    if (read >= 0) ::close(read);
  }
  Pipe(const Pipe&) = delete;
  void close_write() {
    if (write >= 0) ::close(write);
    write = -1;
  }
};

/// Appends what there is; false at the end.
bool take(int fd, std::string& text) {
  std::array<char, 65536> piece{};
  const ssize_t got = ::read(fd, piece.data(), piece.size());
  if (got < 0 && errno == EINTR) return true;
  if (got > 0) text.append(piece.data(), static_cast<size_t>(got));
  return got > 0;
}

void read_both(const Pipe& out, const Pipe& err, ChildEnd& end) {
  std::array<pollfd, 2> ends{{{out.read, POLLIN, 0}, {err.read, POLLIN, 0}}};
  while (ends[0].fd >= 0 || ends[1].fd >= 0) {
    if (::poll(ends.data(), ends.size(), -1) < 0) continue;  // EINTR
    if (ends[0].revents != 0 && !take(out.read, end.out)) ends[0].fd = -1;
    if (ends[1].revents != 0 && !take(err.read, end.err)) ends[1].fd = -1;
    if (end.err.size() > kMostErr) end.err.erase(0, end.err.size() - kMostErr);
  }
}

}  // namespace

ChildEnd run_child(const std::string& program, const std::vector<std::string>& arguments, bool with_stderr) {
  Pipe out, err;
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, out.write, STDOUT_FILENO);
  if (with_stderr) {
    posix_spawn_file_actions_adddup2(&actions, err.write, STDERR_FILENO);
  } else {
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  }
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  ChildEnd end;
  const auto begin = std::chrono::steady_clock::now();
  pid_t child = 0;
  const int failed = posix_spawnp(&child, program.c_str(), &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (failed == ENOENT) throw Error(ErrorKind::not_found, str("there is no program '", program, "'"));
  if (failed != 0) throw_errno(failed, "start", program);
  out.close_write();
  err.close_write();
  read_both(out, err, end);
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  end.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  end.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return end;
}

}  // namespace firstlight

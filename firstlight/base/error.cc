// SPDX-License-Identifier: Apache-2.0
#include "firstlight/base/error.h"

#include <cerrno>
#include <system_error>

#include "firstlight/base/start_thread.h"
#include "firstlight/base/str.h"

namespace firstlight {

Error::Error(ErrorKind kind, const std::string& what, std::source_location where)
    : std::runtime_error(what), kind_(kind), where_(where) {}

std::string_view to_string(ErrorKind kind) noexcept {
  switch (kind) {
    case ErrorKind::bad_input:
      return "bad_input";
    case ErrorKind::unsupported:
      return "unsupported";
    case ErrorKind::not_found:
      return "not_found";
    case ErrorKind::damaged:
      return "damaged";
    case ErrorKind::out_of_memory:
      return "out_of_memory";
    case ErrorKind::io:
      return "io";
    case ErrorKind::device:
      return "device";
    case ErrorKind::bug:
      return "bug";
  }
  return "bug";
}

int exit_code(ErrorKind kind) noexcept {
  switch (kind) {
    case ErrorKind::bad_input:
    case ErrorKind::unsupported:
      return 2;
    case ErrorKind::not_found:
      return 3;
    case ErrorKind::damaged:
      return 4;
    case ErrorKind::out_of_memory:
      return 5;
    case ErrorKind::io:
    case ErrorKind::device:
      return 6;
    case ErrorKind::bug:
      return 70;
  }
  return 70;
}

void throw_errno(int err, std::string_view verb, std::string_view path, std::source_location where) {
  const ErrorKind kind = err == ENOENT || err == ENOTDIR ? ErrorKind::not_found : ErrorKind::io;
  throw Error(kind, str(verb, " '", path, "': ", std::generic_category().message(err)), where);
}

void throw_no_thread(std::string_view what, const std::error_code& why) {
  throw Error(ErrorKind::out_of_memory,
              str("start a thread for ", what, ": ", why.message(),
                  "; the limits on processes (ulimit -u) and on memory (ulimit -v, the container's) allow no more"));
}

}  // namespace firstlight

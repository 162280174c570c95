// SPDX-License-Identifier: Apache-2.0
// The one exception type of Firstlight, and the exit code that each kind of failure becomes.
#pragma once
#include <source_location>
#include <stdexcept>
#include <string>

namespace firstlight {

/// Whose fault it is, as far as a caller or an operator can act on it.
enum class ErrorKind {
  bad_input,      ///< malformed file, wrong argument, impossible request
  unsupported,    ///< well formed, but something Firstlight does not do; the message names it
  not_found,      ///< a file, tensor, rank or device that is not there
  damaged,        ///< bytes disagree with the manifest that describes them
  out_of_memory,  ///< does not fit; the message says what would
  io,             ///< the operating system failed a read or a write
  device,         ///< the GPU or its driver failed
  bug,            ///< our own mistake
};

/// Thrown for every failure that ends a load, a request or the process. A message names the thing, what was found and
/// what was expected.
class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& what, std::source_location where = std::source_location::current());
  ErrorKind kind() const noexcept { return kind_; }
  const std::source_location& where() const noexcept { return where_; }

 private:
  ErrorKind kind_;
  std::source_location where_;
};

/// Thrown when a caller's std::stop_token asked for an end. Not an error: the command line turns it into exit code 130.
class Interrupted : public std::exception {
 public:
  const char* what() const noexcept override { return "interrupted"; }
};

/// "bad_input", "damaged", …
std::string_view to_string(ErrorKind kind) noexcept;

/// bad_input 2, unsupported 2, not_found 3, damaged 4, out_of_memory 5, io 6, device 6, bug 70.
int exit_code(ErrorKind kind) noexcept;

/// Error{io} (not_found for ENOENT) with the path and strerror(err): "read 'x': Input/output error".
[[noreturn]] void throw_errno(int err, std::string_view verb, std::string_view path,
                              std::source_location where = std::source_location::current());

}  // namespace firstlight

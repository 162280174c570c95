// SPDX-License-Identifier: Apache-2.0
// Standard input, for all commands that read it: by read(2), because std::cin takes a failed read, and no memory for a
// long line, for the end.
#pragma once
#include <string>

namespace firstlight::cli {

/// Reads a file descriptor that it does not own; blocks while there is nothing. Use one object for all of an input: it
/// reads ahead. Throws Error{io} if the input cannot be read, Error{bad_input} for a line (or a whole) of more than
/// 1 GiB, Error{out_of_memory} for one that memory does not hold: an endless input must not take the machine's.
class StandardInput {
 public:
  explicit StandardInput(int fd = 0) : fd_(fd) {}
  /// The next line, without its newline; the last one may lack it. False at the end.
  bool read_line(std::string& line);
  /// Whether read_line() has a line without waiting for more.
  bool has_line() const;
  /// All that is left.
  std::string read_all();

 private:
  bool fill();
  void append(std::string& text, size_t n_bytes);
  int fd_;
  bool ended_ = false;
  std::string buffer_;
  size_t begin_ = 0;  // of what is not handed out yet
};

}  // namespace firstlight::cli

// SPDX-License-Identifier: Apache-2.0
#include "firstlight/cli/standard_input.h"

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <new>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"

namespace firstlight::cli {

namespace {

constexpr size_t kPieceBytes = 1u << 16;  // what a pipe holds
constexpr size_t kMostBytes = 1u << 30;

}  // namespace

/// False at the end. Only called with nothing left in the buffer.
bool StandardInput::fill() {
  while (!ended_) {
    buffer_.resize(kPieceBytes);
    begin_ = 0;
    const ssize_t n = ::read(fd_, buffer_.data(), buffer_.size());
    const int why = errno;
    buffer_.resize(n > 0 ? static_cast<size_t>(n) : 0);
    if (n > 0) return true;
    if (n == 0) {
      ended_ = true;
    } else if (why == EAGAIN) {  // who gave it to us left it non-blocking
      pollfd ready{fd_, POLLIN, 0};
      ::poll(&ready, 1, -1);
    } else if (why != EINTR) {
      throw_errno(why, "read", "standard input");
    }
  }
  return false;
}

void StandardInput::append(std::string& text, size_t n_bytes) {
  if (text.size() + n_bytes > kMostBytes)
    throw Error(ErrorKind::bad_input, str("standard input has more than ", kMostBytes, " bytes in one piece"));
  try {
    text.append(buffer_, begin_, n_bytes);
  } catch (const std::bad_alloc&) {
    const size_t had = text.size();
    std::string().swap(text);  // room for the words
    throw Error(ErrorKind::out_of_memory,
                str("standard input: there is no memory for a line or text of more than ", had,
                    " bytes; the system gives no more (ulimit -v, the container's limit)"));
  }
  begin_ += n_bytes;
}

bool StandardInput::read_line(std::string& line) {
  line.clear();
  while (begin_ < buffer_.size() || fill()) {
    const size_t newline = buffer_.find('\n', begin_);
    if (newline != buffer_.npos) {
      append(line, newline - begin_);
      ++begin_;
      return true;
    }
    append(line, buffer_.size() - begin_);
  }
  return !line.empty();
}

bool StandardInput::has_line() const { return buffer_.find('\n', begin_) != buffer_.npos; }

std::string StandardInput::read_all() {
  std::string text;
  while (begin_ < buffer_.size() || fill()) append(text, buffer_.size() - begin_);
  return text;
}

}  // namespace firstlight::cli

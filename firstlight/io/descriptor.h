// SPDX-License-Identifier: Apache-2.0
// A file descriptor with an owner.
#pragma once
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace firstlight {

class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}  ///< may be −1
  ~Descriptor() { close(); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }
  /// 0 or errno: what only close finds out (NFS: ENOSPC, EDQUOT). Never retried: on Linux the descriptor is gone even
  /// after EINTR.
  int close() {
    const int fd = std::exchange(fd_, -1);
    return fd < 0 || ::close(fd) == 0 || errno == EINTR ? 0 : errno;
  }

 private:
  int fd_ = -1;
};

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
#include "firstlight/io/output_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "firstlight/base/error.h"

namespace firstlight {

namespace {

int open_for_writing(const char* path, int flags) {
  int fd = -1;
  do {
    fd = ::open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW | flags, 0644);
  } while (fd < 0 && errno == EINTR);
  return fd;
}

uint64_t round_up(uint64_t n) {
  return (n + OutputFile::kAlignment - 1) / OutputFile::kAlignment * OutputFile::kAlignment;
}

}  // namespace

OutputFile::OutputFile(fs::path path, uint64_t size, const StepHook& hook)
    : path_(std::move(path)), partial_(path_.native() + ".partial"), size_(size), hook_(hook) {
  if (hook_) hook_("create", partial_);
  fd_ = open_for_writing(partial_.c_str(), O_DIRECT);
  direct_ = fd_ >= 0;
  if (fd_ < 0 && errno == EINVAL) fd_ = open_for_writing(partial_.c_str(), 0);
  if (fd_ < 0) throw_errno(errno, "create", partial_);
  // Reserved blocks also let ext4 and XFS take O_DIRECT writes in parallel: none of them extends the file.
  int rc = 0;
  do {
    rc = ::fallocate(fd_, 0, 0, static_cast<off_t>(size_));
  } while (rc != 0 && errno == EINTR);
  if (rc != 0 && errno != EOPNOTSUPP && errno != ENOSYS && errno != EINVAL) {
    const int err = errno;
    ::close(fd_);
    throw_errno(err, "reserve space for", partial_);
  }
}

OutputFile::~OutputFile() {
  if (fd_ >= 0) ::close(fd_);
}

void OutputFile::write(uint64_t offset, std::span<const std::byte> data) {
  if (hook_) hook_("write", partial_);
  const std::byte* from = data.data();
  const uint64_t begin = offset;
  uint64_t left = direct_ ? round_up(data.size()) : data.size();
  while (left > 0) {
    const ssize_t n = ::pwrite(fd_, from, std::min<uint64_t>(left, 1u << 30), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EINVAL && direct_.exchange(false)) {
      // The file system took the flag but not the write; a descriptor can lose O_DIRECT while it is open.
      ::fcntl(fd_, F_SETFL, 0);
      continue;
    }
    if (n < 0 && errno == EINVAL && (::fcntl(fd_, F_GETFL) & O_DIRECT) != 0) continue;  // another thread is at it
    if (n <= 0) throw_errno(n == 0 ? EIO : errno, "write", partial_);
    from += n;
    offset += static_cast<uint64_t>(n);
    left -= static_cast<uint64_t>(n);
    if (n % static_cast<ssize_t>(kAlignment) != 0 && left > 0 && direct_.exchange(false)) ::fcntl(fd_, F_SETFL, 0);
  }
  if (!direct_) drop_cache(begin, data.size());
}

void OutputFile::drop_cache(uint64_t offset, uint64_t size) {
  // Buffered: start the write-back now, or fsync would do all of it at the end, with the pipeline standing still.
  ::sync_file_range(fd_, static_cast<off_t>(offset), static_cast<off_t>(size), SYNC_FILE_RANGE_WRITE);
}

void OutputFile::finish() {
  if (hook_) hook_("sync", partial_);
  if (::ftruncate(fd_, static_cast<off_t>(size_)) != 0) throw_errno(errno, "set the size of", partial_);
  while (::fsync(fd_) != 0) {
    if (errno != EINTR) throw_errno(errno, "fsync", partial_);
  }
  // A 100 GB model must not push everything else out of the page cache.
  if (!direct_) ::posix_fadvise(fd_, 0, 0, POSIX_FADV_DONTNEED);
  const int fd = std::exchange(fd_, -1);
  if (::close(fd) != 0 && errno != EINTR) throw_errno(errno, "close", partial_);
  if (hook_) hook_("rename", partial_);
  if (::rename(partial_.c_str(), path_.c_str()) != 0) throw_errno(errno, "rename", partial_);
  fsync_directory(path_.has_parent_path() ? path_.parent_path() : fs::path("."));
}

bool remove_file(const fs::path& path, const StepHook& hook) {
  std::error_code ignored;
  if (!fs::exists(fs::symlink_status(path, ignored))) return false;
  if (hook) hook("remove", path.native());
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) throw_errno(errno, "remove", path.native());
  return true;
}

}  // namespace firstlight

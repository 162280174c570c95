// SPDX-License-Identifier: Apache-2.0
// POSIX files: every loop over short reads, short writes and EINTR in this layer's synchronous paths is here.
#include "firstlight/io/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/io/descriptor.h"

namespace firstlight {

namespace {

// Linux moves at most 0x7ffff000 bytes a call; half of that keeps every request page-aligned relative to the first.
constexpr size_t kMostPerCall = 1u << 30;

FileIdentity identity_of(const struct stat& s) {
  return {static_cast<uint64_t>(s.st_dev), static_cast<uint64_t>(s.st_ino), static_cast<uint64_t>(s.st_size),
          static_cast<int64_t>(s.st_mtim.tv_sec) * 1'000'000'000 + s.st_mtim.tv_nsec};
}

int open_retrying(const char* path, int flags, mode_t mode = 0) {
  int fd = -1;
  do {
    fd = ::open(path, flags | O_CLOEXEC, mode);
  } while (fd < 0 && errno == EINTR);
  return fd;
}

int write_all(int fd, std::span<const std::byte> data) {
  while (!data.empty()) {
    const ssize_t n = ::write(fd, data.data(), std::min(data.size(), kMostPerCall));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    if (n == 0) return EIO;  // a regular file never takes nothing without an error; do not spin if one does
    data = data.subspan(static_cast<size_t>(n));
  }
  return 0;
}

int fsync_retrying(int fd) {
  while (::fsync(fd) != 0) {
    if (errno != EINTR) return errno;
  }
  return 0;
}

}  // namespace

std::shared_ptr<const File> File::open(const fs::path& path, FileRole role) {
  // O_NONBLOCK: a FIFO in the place of a file must be refused, not waited for. It means nothing for regular files.
  const int no_link = role == FileRole::checkpoint ? O_NOFOLLOW : 0;
  const int fd = open_retrying(path.c_str(), O_RDONLY | O_NONBLOCK | no_link);
  if (fd < 0 && errno == ELOOP && no_link != 0) {
    throw Error(ErrorKind::damaged,
                str("'", path.native(), "' is a symbolic link, expected a file: a checkpoint holds no links"));
  }
  if (fd < 0) throw_errno(errno, "open", path.native());
  std::shared_ptr<File> file(new File());
  file->fd_ = fd;
  file->path_ = path.native();
  file->role_ = role;
  struct stat s {};
  if (::fstat(fd, &s) != 0) throw_errno(errno, "stat", path.native());
  if (!S_ISREG(s.st_mode)) {
    throw Error(ErrorKind::bad_input,
                str("'", path.native(), "' is ", S_ISDIR(s.st_mode) ? "a directory" : "no regular file",
                    ", expected a regular file"));
  }
  file->identity_ = identity_of(s);
  return file;
}

File::~File() {
  if (fd_ >= 0) ::close(fd_);
}

void File::read(uint64_t offset, std::span<std::byte> into) const {
  const uint64_t begin = offset, size = into.size();
  const auto range = [&] { return str("'", path_, "' bytes [", begin, ", ", begin + size, ")"); };
  constexpr auto kMostOffset = static_cast<uint64_t>(std::numeric_limits<off_t>::max());
  if (size > kMostOffset || begin > kMostOffset - size) {
    throw Error(ErrorKind::bug,
                str("read ", size, " bytes at ", begin, " of '", path_, "': past what a file can hold"));
  }
  while (!into.empty()) {
    const ssize_t n = ::pread(fd_, into.data(), std::min(into.size(), kMostPerCall), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_errno(errno, "read", range());
    if (n == 0) {
      throw_changed(str("read ", range(), ": the file ends at ", offset, ", it had ", identity_.size,
                        " bytes when it was opened"));
    }
    offset += static_cast<uint64_t>(n);
    into = into.subspan(static_cast<size_t>(n));
  }
}

void File::turn_off_read_ahead() const noexcept { ::posix_fadvise(fd_, 0, 0, POSIX_FADV_RANDOM); }

void File::check_unchanged() const {
  struct stat open_file {
  }, named{};
  if (::fstat(fd_, &open_file) != 0) throw_errno(errno, "stat", path_);
  const bool named_exists = ::stat(path_.c_str(), &named) == 0;
  if (!named_exists && errno != ENOENT && errno != ENOTDIR) throw_errno(errno, "stat", path_);
  const FileIdentity now = identity_of(open_file);
  if (now == identity_ && named_exists && identity_of(named) == identity_) return;
  std::string what = str("'", path_, "' changed while it was read: ");
  if (now.size != identity_.size) {
    what += str("it has ", now.size, " bytes, it had ", identity_.size);
  } else if (now != identity_) {
    what += "its modification time is another";
  } else {
    what += named_exists ? "the path names another file now" : "it was removed";
  }
  throw_changed(what);
}

void File::throw_changed(const std::string& what) const {
  if (role_ == FileRole::checkpoint) throw Error(ErrorKind::damaged, what);
  throw Error(ErrorKind::bad_input,
              str(what, "; it must not change while it is read: begin again when nobody writes to it"));
}

std::string read_text(const fs::path& path, uint64_t max_bytes, FileRole role) {
  const auto file = File::open(path, role);
  if (file->size() > max_bytes) {
    throw Error(ErrorKind::bad_input,
                str("'", file->path(), "' has ", file->size(), " bytes, expected at most ", max_bytes));
  }
  std::string text(static_cast<size_t>(file->size()), '\0');
  file->read(0, std::as_writable_bytes(std::span(text)));
  file->check_unchanged();
  return text;
}

void write_durably(const fs::path& path, std::span<const std::byte> data) {
  const fs::path partial = path.native() + ".partial";
  Descriptor out(open_retrying(partial.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666));
  if (out.get() < 0) throw_errno(errno, "create", partial.native());
  int err = write_all(out.get(), data);
  const char* verb = "write";
  if (err == 0) err = fsync_retrying(out.get()), verb = "fsync";
  const int close_err = out.close();
  if (err == 0 && close_err != 0) err = close_err, verb = "close";
  if (err == 0 && ::rename(partial.c_str(), path.c_str()) != 0) err = errno, verb = "rename";
  if (err != 0) {
    ::unlink(partial.c_str());
    throw_errno(err, verb, partial.native());
  }
  fsync_directory(path.has_parent_path() ? path.parent_path() : fs::path("."));
}

void write_durably(const fs::path& path, std::string_view text) { write_durably(path, std::as_bytes(std::span(text))); }

void fsync_directory(const fs::path& path) {
  Descriptor directory(open_retrying(path.c_str(), O_RDONLY | O_DIRECTORY));
  if (directory.get() < 0) throw_errno(errno, "open directory", path.native());
  const int err = fsync_retrying(directory.get());
  // Some file systems (FUSE, old NFS) cannot sync a directory and say so with EINVAL: there is nothing more to do
  // there.
  if (err != 0 && err != EINVAL) throw_errno(err, "fsync directory", path.native());
}

uint64_t free_space(const fs::path& path) {
  fs::path at = fs::absolute(path).lexically_normal();
  struct statvfs s {};
  for (;;) {
    int rc = 0;
    do {
      rc = ::statvfs(at.c_str(), &s);
    } while (rc != 0 && errno == EINTR);
    if (rc == 0) return static_cast<uint64_t>(s.f_bavail) * static_cast<uint64_t>(s.f_frsize);
    if ((errno != ENOENT && errno != ENOTDIR) || at == at.parent_path()) throw_errno(errno, "statvfs", at.native());
    at = at.parent_path();
  }
}

}  // namespace firstlight

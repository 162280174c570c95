// SPDX-License-Identifier: Apache-2.0
#include "firstlight/ckpt/shard_read.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace firstlight {

namespace {

constexpr uint64_t kPage = 4096;
constexpr long kCachestat = 451;  // Linux 6.5; the same number on every architecture

/// True if most of the range is in the page cache. A kernel that cannot tell: no; a source is usually read once.
bool is_cached(int fd, uint64_t offset, uint64_t bytes) {
  struct {
    uint64_t offset, bytes;
  } range{offset, bytes};
  struct {
    uint64_t n_cached, n_dirty, n_writeback, n_evicted, n_recently_evicted;
  } found{};
  if (::syscall(kCachestat, fd, &range, &found, 0) != 0) return false;
  return found.n_cached * kPage * 4 >= bytes * 3;
}

}  // namespace

DirectReader::~DirectReader() {
  for (const auto& [file, fd] : fds_) {
    if (fd >= 0) ::close(fd);
  }
}

int DirectReader::fd_of(const File& file) {
  const std::lock_guard lock(mutex_);
  const auto [entry, is_new] = fds_.try_emplace(&file, -1);
  if (!is_new) return entry->second;
  const int fd = ::open(file.path().c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC | O_NONBLOCK);
  struct stat info {};
  if (fd < 0 || ::fstat(fd, &info) != 0) return -1;
  if (info.st_dev != file.identity().device || info.st_ino != file.identity().inode) {
    ::close(fd);  // the path names another file now: read_rows says so
    return -1;
  }
  return entry->second = fd;
}

const std::byte* DirectReader::try_read(const File& file, uint64_t offset, uint64_t bytes,
                                        std::span<std::byte> buffer) {
  const uint64_t begin = offset / kPage * kPage, skip = offset - begin;
  const uint64_t want = (skip + bytes + kPage - 1) / kPage * kPage;
  if (want > buffer.size() || is_cached(file.fd(), offset, bytes)) return nullptr;
  const int fd = fd_of(file);
  if (fd < 0) return nullptr;
  uint64_t have = 0;
  while (have < skip + bytes) {
    const ssize_t n = ::pread(fd, buffer.data() + have, want - have, static_cast<off_t>(begin + have));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return nullptr;
    have += static_cast<uint64_t>(n);
    if (have < skip + bytes && have % kPage != 0) return nullptr;  // the file ends here
  }
  return buffer.data() + skip;
}

const std::byte* read_band(const Source& source, DirectReader& direct, const SourceTensor& tensor, int64_t row_begin,
                           int64_t row_end, DType as, uint64_t bytes, std::span<std::byte> buffer) {
  if (const std::optional<Source::Place> place = source.place_of(tensor, row_begin, as)) {
    if (const std::byte* rows = direct.try_read(*place->file, place->offset, bytes, buffer)) {
      place->file->check_unchanged();
      return rows;
    }
  }
  source.read_rows(tensor, row_begin, row_end, as, buffer.first(bytes));
  return buffer.data();
}

}  // namespace firstlight

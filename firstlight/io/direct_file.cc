// SPDX-License-Identifier: Apache-2.0
#include "firstlight/io/direct_file.h"

#include <fcntl.h>
#include <linux/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "firstlight/base/str.h"
#include "firstlight/io/residency.h"

namespace firstlight {

namespace {

/// What the kernel says, or a page: no file system on Linux asks for more.
DirectAlignment alignment_of(int fd) {
  constexpr DirectAlignment kPage{4096, 4096};
#ifdef STATX_DIOALIGN
  struct statx about {};
  if (syscall(__NR_statx, fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &about) == 0 && (about.stx_mask & STATX_DIOALIGN)) {
    return {about.stx_dio_mem_align, about.stx_dio_offset_align};
  }
#else
  static_cast<void>(fd);
#endif
  return kPage;
}

}  // namespace

ReadStep next_step(uint64_t offset, uint64_t into, uint64_t size, DirectAlignment alignment) {
  if (alignment.memory == 0 || alignment.offset == 0) return {size, false};
  const uint64_t head = (alignment.offset - offset % alignment.offset) % alignment.offset;
  if (head > size || size - head < alignment.offset || (into + head) % alignment.memory != 0) return {size, false};
  if (head != 0) return {head, false};
  return {size / alignment.offset * alignment.offset, true};
}

void DirectUse::failed(const DirectFile& file) {
  if (why_not.empty()) why_not = file.why_not();
}

std::string DirectUse::text() const {
  std::string text;
  if (direct_bytes > 0) text += str("; ", human_bytes(static_cast<double>(direct_bytes)), " past the page cache");
  if (cached_bytes > 0)
    text += str("; ", human_bytes(static_cast<double>(cached_bytes)),
                direct_bytes > 0 ? " through it" : " through the page cache");
  if (!why_not.empty()) text += str("; ", why_not);
  return text;
}

// Opened is the open file itself, whatever its path names by now.
DirectFile::DirectFile(std::shared_ptr<const File> file)
    : file_(std::move(file)), fd_(::open(str("/proc/self/fd/", file_->fd()).c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC)) {
  if (fd_.get() < 0) {
    why_not_ = errno == EINVAL ? "the file system has no O_DIRECT"
                               : str("open with O_DIRECT: ", std::generic_category().message(errno));
    return;
  }
  if (lies_in_memory(*file_)) {  // tmpfs takes O_DIRECT since Linux 6.6, and copies as ever
    why_not_ = "the file system is memory (tmpfs): there is nothing past it";
    return;
  }
  alignment_ = alignment_of(fd_.get());
  if (alignment_.offset == 0 || alignment_.memory == 0) why_not_ = "the file system has no O_DIRECT for this file";
}

void DirectFile::refuse(int error) {
  alignment_ = {};
  why_not_ = str("O_DIRECT refused: ", std::generic_category().message(error));
}

}  // namespace firstlight

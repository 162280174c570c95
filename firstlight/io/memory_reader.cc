// SPDX-License-Identifier: Apache-2.0
#include "firstlight/io/memory_reader.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace firstlight {

void MemoryRead::put(const File& file, std::vector<std::byte> bytes) {
  auto shared = std::make_shared<const std::vector<std::byte>>(std::move(bytes));
  const std::lock_guard lock(mutex_);
  files_[file.fd()] = std::move(shared);
}

ssize_t MemoryRead::pread(int fd, void* into, size_t size, off_t offset) {
  std::shared_ptr<const std::vector<std::byte>> bytes;
  {
    const std::lock_guard lock(mutex_);
    const auto found = files_.find(fd);
    if (found == files_.end()) return RawRead::pread(fd, into, size, offset);
    bytes = found->second;
  }
  if (offset < 0) {
    errno = EINVAL;
    return -1;
  }
  const auto at = static_cast<size_t>(offset);
  if (at >= bytes->size()) return 0;
  const size_t n = std::min(size, bytes->size() - at);
  std::memcpy(into, bytes->data() + at, n);
  return static_cast<ssize_t>(n);
}

std::unique_ptr<Reader> make_memory_reader(std::shared_ptr<MemoryRead> memory, int n_threads) {
  return std::make_unique<PreadReader>(n_threads, std::move(memory), "memory", "the bytes were put there");
}

}  // namespace firstlight

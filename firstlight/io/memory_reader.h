// SPDX-License-Identifier: Apache-2.0
// Bytes in memory in the place of a file's storage, behind the queue of PreadReader.
#pragma once
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "firstlight/io/pread_reader.h"

namespace firstlight {

/// Files whose content was put here are read from memory, others by the kernel. Thread-safe.
class MemoryRead : public RawRead {
 public:
  /// From now on reads of this open file (by its descriptor, which must stay open) see `bytes`.
  void put(const File& file, std::vector<std::byte> bytes);
  ssize_t pread(int fd, void* into, size_t size, off_t offset) override;

 private:
  std::mutex mutex_;
  std::map<int, std::shared_ptr<const std::vector<std::byte>>> files_;
};

/// A Reader named "memory".
std::unique_ptr<Reader> make_memory_reader(std::shared_ptr<MemoryRead> memory, int n_threads);

}  // namespace firstlight

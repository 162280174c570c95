// SPDX-License-Identifier: Apache-2.0
// Reads past the page cache: a second descriptor of an open file, and where a read may use it.
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "firstlight/io/descriptor.h"
#include "firstlight/io/file.h"

namespace firstlight {

/// What O_DIRECT asks of a file's reads, bytes; powers of two, or 0: it cannot be read so.
struct DirectAlignment {
  uint64_t memory = 0;
  uint64_t offset = 0;  ///< of offset and size
};

/// The first part of a read that can go in one call.
struct ReadStep {
  uint64_t size = 0;
  bool direct = false;
};

/// How a read of `size` > 0 bytes at `offset` into address `into` begins: to the next aligned offset through the page
/// cache, all whole units past it, the rest through the page cache again. Address and offset must be aligned at the
/// same places, else all of it goes through the page cache.
ReadStep next_step(uint64_t offset, uint64_t into, uint64_t size, DirectAlignment alignment);

class DirectFile;

/// How many of a reader's bytes went which way, for its why(). One thread at a time.
struct DirectUse {
  uint64_t direct_bytes = 0, cached_bytes = 0;
  std::string why_not;  ///< the first reason

  void add(const ReadStep& step, uint64_t bytes) { (step.direct ? direct_bytes : cached_bytes) += bytes; }
  void failed(const DirectFile& file);  ///< if it cannot be read so: why
  /// "; 2.47 GB past the page cache; 1.2 MB through it", "" before the first byte.
  std::string text() const;
};

/// One thread at a time, but for fd() and file().
class DirectFile {
 public:
  /// Opens the file again, with O_DIRECT, and asks statx(2) for its alignment (kernels before 6.1 do not know: a page).
  /// Where that fails, all reads go through the page cache and why_not() says so.
  explicit DirectFile(std::shared_ptr<const File> file);

  const File& file() const { return *file_; }
  int fd(bool direct) const { return direct ? fd_.get() : file_->fd(); }
  DirectAlignment alignment() const { return alignment_; }
  /// "" or why no read of this file goes past the page cache.
  const std::string& why_not() const { return why_not_; }
  /// A direct read was refused although it was aligned as was asked: no more of them.
  void refuse(int error);

 private:
  std::shared_ptr<const File> file_;
  Descriptor fd_;
  DirectAlignment alignment_;
  std::string why_not_;
};

}  // namespace firstlight

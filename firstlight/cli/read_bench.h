// SPDX-License-Identifier: Apache-2.0
// Reading the bytes of some files into memory, for `bench load`: through a Reader, and beside it the floor, plain
// system calls with the same pattern.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "firstlight/device/buffer.h"
#include "firstlight/io/file.h"
#include "firstlight/io/reader_choice.h"

namespace firstlight::cli {

struct ReadPattern {
  uint64_t piece = 4u << 20;  ///< bytes a request
  int in_flight = 16;         ///< requests at once; pread has as many as threads
  int threads = 2;
};

class ReadBench {
 public:
  /// The first `most_bytes` of the files, whole pages of them.
  ReadBench(std::vector<std::shared_ptr<const File>> files, uint64_t most_bytes);

  uint64_t bytes() const { return into_.size(); }
  /// Asks the kernel to drop the files from the page cache; false if it did not.
  bool make_cold() const;
  void make_warm();
  /// Takes, touches and gives back as much memory as a load takes. Directly before a measurement that takes new memory:
  /// a virtual machine's host needs seconds for pages that it was given back, which is no reader's doing.
  void stir_memory() const;
  /// Seconds for the first `bytes` bytes, into data(), which has been touched. Threads or rings are made in this time,
  /// and end in it. Throws Error{io}.
  double by_reader(ReaderKind kind, const ReadPattern& pattern, uint64_t bytes);
  /// The floor: pread(2) through the page cache by as many threads as the pattern has, or with O_DIRECT by as many as
  /// it has in flight. `fresh`: into memory that is new, as a load's arena is. Throws Error{io, unsupported}.
  double by_system_calls(bool direct, bool fresh, const ReadPattern& pattern);
  std::span<const std::byte> data() const { return into_.bytes(); }

 private:
  struct Piece {
    size_t file = 0;
    uint64_t offset = 0, size = 0, at = 0;
  };
  std::vector<Piece> cut(uint64_t piece, uint64_t bytes) const;

  std::vector<std::shared_ptr<const File>> files_;
  Buffer into_;
};

}  // namespace firstlight::cli

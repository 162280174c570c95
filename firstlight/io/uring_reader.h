// SPDX-License-Identifier: Apache-2.0
// The Reader that keeps many reads under way with few threads: io_uring, past the page cache (O_DIRECT) wherever offset
// and address allow it.
#pragma once
#include <functional>
#include <memory>
#include <string>

#include "firstlight/io/reader.h"
#include "firstlight/io/ring.h"

namespace firstlight {

struct UringOptions {
  int n_threads = 2;  ///< each with a ring of its own; callbacks run there
  int depth = 8;      ///< requests under way at once, each thread; 8 of 4 MiB on two threads: 64 MiB
  /// Shorter requests (headers, hashes) go through the page cache, where the last start has left them.
  uint64_t direct_from = 256u << 10;
  std::string name = "io_uring";
  std::string why = "asked for";
  std::function<std::unique_ptr<Ring>(unsigned depth)> make_ring;  ///< default: the kernel's
};

/// Requests start in the order of submission. why() ends with the bytes that went past the page cache and through it,
/// and why where O_DIRECT was to be had for none of a file. Throws Error{unsupported} where io_uring is not to be had.
std::unique_ptr<Reader> make_uring_reader(const UringOptions& options);

}  // namespace firstlight

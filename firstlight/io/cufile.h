// SPDX-License-Identifier: Apache-2.0
// libcufile, opened at run time: its few functions that a load needs, declared here (CUDA's toolkit does not always
// bring cufile.h), and the words for its errors.
#pragma once
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "firstlight/device/gpus.h"

namespace firstlight {

/// By which way the library says that a GPU's reads went.
struct CufileReads {
  uint64_t bytes = 0;
  uint64_t n_reads = 0;
  uint64_t n_p2p = 0;    ///< straight from the storage device, by PCI peer-to-peer
  uint64_t n_nvfs = 0;   ///< straight, by the driver nvidia-fs
  uint64_t n_posix = 0;  ///< through host memory: compatibility mode
};

/// The library with its driver open, counted by the library. Never unloaded: other libraries hold on to it.
/// Thread-safe.
class Cufile {
 public:
  using Handle = void*;

  /// Opens the library and its driver, at first without compatibility mode (reads through host memory, which our own
  /// ring does faster); that mode only where it is allowed and nothing else is to be had. Blocks, seconds on some
  /// machines. Throws Error{unsupported} with the reason: no library, or no driver for direct reads.
  static std::shared_ptr<Cufile> open(bool allow_compatibility, const char* library = "libcufile.so.0");
  ~Cufile();
  Cufile(const Cufile&) = delete;
  Cufile& operator=(const Cufile&) = delete;

  /// Why direct reads cannot be had, or "": they can, as far as the driver knows before it sees a file.
  const std::string& why_compatibility() const { return why_compatibility_; }
  std::string version() const;  ///< "1.15", or "" if the library does not say

  /// The descriptor stays the caller's and must stay open until forget(). Throws Error{unsupported}.
  Handle remember(int fd);
  void forget(Handle handle) noexcept;
  /// Registers device memory, which direct reads then need no copy to reach; "" or why not. Until unregister_memory().
  std::string register_memory(const std::byte* begin, uint64_t size);
  void unregister_memory(const std::byte* begin) noexcept;

  /// As pread(2), into device memory at base + into_offset; `base` is the beginning of registered memory, or any
  /// address. −1: errno says why. Below −1: a code for words_for().
  ssize_t read(Handle handle, std::byte* base, size_t size, off_t file_offset, off_t into_offset);
  static std::string words_for(ssize_t code);

  /// What it counted for a GPU since its driver was opened; nothing if it does not count (before CUDA 13) or its
  /// counters do not add up: their place differs from version to version.
  std::optional<CufileReads> reads_of(const GpuUuid& gpu) const;

 private:
  struct Functions;
  Cufile();
  std::unique_ptr<Functions> f_;
  std::string why_compatibility_;
  bool is_open_ = false;
};

/// Finds a GPU's counters in what the library filled in, by the GPU's UUID before them; nothing if there are none or
/// the kinds of reads do not add up to the number of reads.
std::optional<CufileReads> find_cufile_reads(const std::byte* stats, size_t size, const GpuUuid& gpu);

}  // namespace firstlight

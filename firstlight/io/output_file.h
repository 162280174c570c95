// SPDX-License-Identifier: Apache-2.0
// A large file in the making: NAME.partial, written past the page cache where the file system takes that, then made
// durable under its name.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "firstlight/io/file.h"

namespace firstlight {

/// Called before each change of the file system ("create", "write", "sync", "rename", "journal", …) with its path; may
/// throw, which fails the writing at exactly that step. For tests of crashes.
using StepHook = std::function<void(std::string_view step, const std::string& path)>;

class OutputFile {
 public:
  static constexpr uint64_t kAlignment = 4096;  ///< of offsets, sizes and memory in write()

  /// Creates path.partial (replacing a stale one) and reserves `size` bytes on disk, so that a full disk is found here.
  OutputFile(fs::path path, uint64_t size, const StepHook& hook);
  ~OutputFile();  ///< closes; what was not finished stays as .partial
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  const fs::path& path() const noexcept { return path_; }
  /// Writes data at offset (both multiples of kAlignment; only the file's last piece may have another size, and its
  /// memory must be readable up to the next multiple). From any thread, in any order. Throws Error{io} with the path.
  void write(uint64_t offset, std::span<const std::byte> data);
  /// Exact size, fsync, rename, fsync of the directory.
  void finish();

 private:
  void drop_cache(uint64_t offset, uint64_t size);

  fs::path path_;
  std::string partial_;
  uint64_t size_ = 0;
  const StepHook& hook_;
  int fd_ = -1;
  std::atomic<bool> direct_{false};
};

/// remove() that fails loudly and goes through the hook; true if there was something.
bool remove_file(const fs::path& path, const StepHook& hook);

}  // namespace firstlight

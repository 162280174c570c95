// SPDX-License-Identifier: Apache-2.0
// Files as the loader and the converter need them: identity, exact reads, durable writes.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace firstlight {

namespace fs = std::filesystem;

/// What must not change under us between open and close.
struct FileIdentity {
  uint64_t device = 0, inode = 0, size = 0;
  int64_t modified_ns = 0;
  friend bool operator==(const FileIdentity&, const FileIdentity&) = default;
};

/// What a file is to whoever reads it. `input`: it may be a symbolic link, and if it changes while it is read the input
/// is bad (Error{bad_input}). `checkpoint`, of a rank checkpoint: no link (its last name is looked at), and one that
/// changes is damaged.
enum class FileRole { input, checkpoint };

/// A regular file, open for reading. Shared between threads (pread only).
class File {
 public:
  /// Throws Error{not_found, io}; {bad_input} for anything that is not a regular file, {damaged} for a link in a
  /// checkpoint.
  static std::shared_ptr<const File> open(const fs::path& path, FileRole role = FileRole::input);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  const std::string& path() const noexcept { return path_; }
  int fd() const noexcept { return fd_; }
  uint64_t size() const noexcept { return identity_.size; }
  const FileIdentity& identity() const noexcept { return identity_; }

  /// Fills all of `into` from `offset`; EINTR and short reads are continued. Throws if the file ends before (it was cut
  /// after it was opened; the kind is its role's), Error{io} otherwise; the message has path and range.
  void read(uint64_t offset, std::span<std::byte> into) const;
  /// Reads of this open file bring what they ask for and no more: many long reads under way are their own read-ahead.
  void turn_off_read_ahead() const noexcept;
  /// Throws "… changed while it was read", of its role's kind, if the open file or what its path names is no longer
  /// identity().
  void check_unchanged() const;

 private:
  File() = default;
  [[noreturn]] void throw_changed(const std::string& what) const;
  std::string path_;
  FileRole role_ = FileRole::input;
  int fd_ = -1;
  FileIdentity identity_;
};

/// More than any manifest, index, tokenizer or configuration: Llama 3.1 405B's manifest for four tps has a few MB.
constexpr uint64_t kMostTextBytes = 256u << 20;

/// The whole of a file; refuses more than max_bytes (Error{bad_input}).
std::string read_text(const fs::path& path, uint64_t max_bytes = kMostTextBytes, FileRole role = FileRole::input);

/// Writes path.partial, fsync, rename to path, fsync of the directory: afterwards path has all of `data` or is
/// untouched.
void write_durably(const fs::path& path, std::span<const std::byte> data);
void write_durably(const fs::path& path, std::string_view text);
void fsync_directory(const fs::path& path);

/// Bytes that the file system of `path` (or its nearest existing parent) can still take.
uint64_t free_space(const fs::path& path);

}  // namespace firstlight

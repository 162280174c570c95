// SPDX-License-Identifier: Apache-2.0
// GGUF v2 and v3, little-endian, parsed as if the author were hostile:
// https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "firstlight/io/file.h"
#include "firstlight/quant/ggml.h"

namespace firstlight {

enum class GgufValueType : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };
std::string_view to_string(GgufValueType type) noexcept;  ///< "u8", "string", …

/// A metadata value. Views point into the header's bytes.
struct GgufValue {
  GgufValueType type = GgufValueType::u8;
  uint64_t bits = 0;                          ///< scalars: the stored bytes, the rest 0
  std::string_view text;                      ///< strings
  GgufValueType element = GgufValueType::u8;  ///< arrays
  uint64_t count = 0;                         ///< arrays
  std::string_view raw;                       ///< arrays: the elements as stored
  std::vector<std::string_view> texts;        ///< arrays of strings
};

/// Keys and values in file order. The typed getters give null for an absent key and throw Error{bad_input} naming the
/// key for another type.
class GgufMetadata {
 public:
  struct Entry {
    std::string_view key;
    GgufValue value;
  };
  const std::vector<Entry>& entries() const noexcept { return entries_; }
  const GgufValue* find(std::string_view key) const noexcept;

  std::optional<std::string_view> text(std::string_view key) const;
  std::optional<int64_t> integer(std::string_view key) const;  ///< any integer type whose value fits
  std::optional<double> number(std::string_view key) const;    ///< f32, f64 or any integer type
  std::optional<bool> boolean(std::string_view key) const;
  const std::vector<std::string_view>* texts(std::string_view key) const;
  std::optional<std::vector<int64_t>> integers(
      std::string_view key) const;  ///< an array of integers (booleans count as 0 and 1)
  std::optional<std::vector<float>> numbers(std::string_view key) const;  ///< an array of f32 or f64

 private:
  friend class GgufParser;
  std::vector<Entry> entries_;
  std::vector<uint32_t> by_key_;  // indices into entries_, sorted by key
};

struct GgufTensor {
  std::string name;
  const GgmlTypeInfo* type = nullptr;
  std::vector<int64_t> shape;  ///< row-major, outermost first (GGUF stores the reverse); 1 to 4 dimensions, none is 0
  uint64_t offset = 0;         ///< of its first byte in the file
  uint64_t bytes = 0;
  int part = 0;  ///< index of the file in a split GGUF
};

/// What stands before the data of one file.
struct GgufHeader {
  uint32_t version = 3;
  uint64_t alignment = 32;
  GgufMetadata metadata;
  std::vector<GgufTensor> tensors;  ///< in file order
  uint64_t data_begin = 0;          ///< offset of the data section in the file
};

/// `head`: the first bytes of a file of `file_bytes`; the result points into it. Null if the header goes on behind
/// head. Refuses (Error{bad_input} naming `path` and the key or tensor): counts, lengths and nesting that the file
/// cannot hold, duplicate keys and tensors, non-UTF-8, alignments that are no power of two from 8 to 2²⁰, tensors
/// without or with more than 4 dimensions or with a dimension of 0, rows that are no whole blocks, offsets that
/// overflow, are not aligned, overlap, leave holes or pass the end, and bytes after the last tensor.
/// Error{unsupported}: other versions, big-endian files, unknown tensor types.
std::optional<GgufHeader> parse_gguf_header(std::string_view head, uint64_t file_bytes, std::string_view path);

/// An open GGUF: one file, or all parts of a split one. Immutable.
class Gguf {
 public:
  /// Any part of a split GGUF (…-00002-of-00005.gguf with split.count in its metadata) finds the others beside it.
  /// Throws Error{not_found} naming a part that is missing, Error{bad_input} for parts that do not belong together, and
  /// what parse_gguf_header throws.
  static std::unique_ptr<const Gguf> open(const fs::path& path);

  const GgufMetadata& metadata() const noexcept { return parts_.front().header.metadata; }  ///< of the first part
  const std::vector<GgufTensor>& tensors() const noexcept { return tensors_; }              ///< of all parts
  size_t n_parts() const noexcept { return parts_.size(); }
  const std::shared_ptr<const File>& file(int part) const { return parts_.at(static_cast<size_t>(part)).file; }
  const GgufHeader& header(int part) const { return parts_.at(static_cast<size_t>(part)).header; }
  /// The header's bytes as they stand in the file, for hashing.
  std::string_view header_bytes(int part) const;

 private:
  struct Part {
    std::shared_ptr<const File> file;
    std::unique_ptr<std::string> head;  // stays in place: views point into it
    GgufHeader header;
  };
  static Part open_part(const fs::path& path);
  Gguf() = default;
  std::vector<Part> parts_;
  std::vector<GgufTensor> tensors_;
};

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// The head of a prefix file, version 1 (docs/prefix.md): what the saved keys and values belong to, and the hash of
// every page.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "firstlight/kv/kv_kind.h"

namespace firstlight {

inline constexpr uint32_t kPrefixVersion = 1;
inline constexpr uint64_t kPrefixAlignment = 4096;  ///< of the head's end, and of where a rank's pages begin
inline constexpr uint64_t kPrefixFixedBytes = 256;  ///< of the head, before the token ids
inline constexpr size_t kPrefixNameBytes = 64;      ///< longest `model` and `computed_by`

/// Whose keys and values they are. All but `computed_by` must be the same where they are used again.
struct PrefixInfo {
  std::string model;        ///< identity of the weights; printable ASCII, not empty
  std::string computed_by;  ///< the arithmetic, in words: another one differs in last bits; printable ASCII
  KvKind kind = KvKind::bf16;
  uint64_t seed = 0;      ///< of the signs of codes; 0 for f32 and bf16
  uint64_t centring = 0;  ///< of codes: hash of the means that were subtracted; 0: none were
  int tp = 1;
  int n_layers = 0, n_kv_heads = 0, head_dim = 0;  ///< of the whole model
  std::vector<int> tokens;                         ///< whole pages of them, at least one

  int64_t n_pages() const noexcept { return static_cast<int64_t>(tokens.size()) / kPageTokens; }
  int64_t n_exact() const noexcept;  ///< pages that also stand in bf16: of codes the first and the last three, else 0
  int64_t exact_page(int64_t i) const noexcept;  ///< the number in the sequence of the i-th of them, ascending
  uint64_t page_bytes() const;                   ///< of one rank, over all layers
  uint64_t exact_page_bytes() const;
};

/// Head and sizes of a file. Ranks stand one after another, each a section of whole pages, then a section of exact
/// ones.
struct PrefixHead {
  PrefixInfo info;
  std::vector<uint64_t> hashes;  ///< XXH3-64: [rank][n_pages], then [rank][n_exact]

  /// Where the data begins: the head's size, a multiple of kPrefixAlignment.
  uint64_t head_bytes() const noexcept;
  uint64_t page_at(int rank, int64_t page) const;  ///< offset in the file
  uint64_t exact_at(int rank, int64_t i) const;
  uint64_t section_end(int rank, bool exact) const;  ///< before the zeros that pad it to kPrefixAlignment
  uint64_t file_bytes() const;
  uint64_t page_hash(int rank, int64_t page) const;
  uint64_t exact_hash(int rank, int64_t i) const;
};

/// The head's bytes: head_bytes() of them. Throws Error{bug} for an info that no file can have.
std::vector<std::byte> to_bytes(const PrefixHead& head);

/// How long the head says that it is, from its first kPrefixFixedBytes. Throws Error{bad_input} if this is no prefix
/// file, Error{unsupported} for another version, Error{damaged} for a head longer than the file.
uint64_t prefix_head_bytes(std::span<const std::byte> fixed, uint64_t file_bytes, std::string_view path);
/// The head, its own hash checked. Throws Error{damaged} if the hash or the file's size is another one,
/// Error{bad_input, unsupported} for what no file of this version has. Whoever wrote it: sizes are bounded before they
/// are used, nothing is allocated beyond what `head` holds.
PrefixHead parse_prefix_head(std::span<const std::byte> head, uint64_t file_bytes, std::string_view path);
/// XXH3-64 of a head, its field of the hash taken as zeros; where that field is.
uint64_t prefix_head_hash(std::span<const std::byte> head);
inline constexpr size_t kPrefixHashAt = kPrefixFixedBytes - sizeof(uint64_t);

/// Throws Error{bad_input} naming the first field in which `found` is not `expected` (its tokens and computed_by
/// aside), both values, and the file.
void require_same_cache(const PrefixInfo& found, const PrefixInfo& expected, std::string_view path);
/// Throws Error{bad_input} saying at which token `prompt` is another text than the file's, or that it is shorter.
void require_begins_with(std::span<const int> prompt, const PrefixInfo& found, std::string_view path);

}  // namespace firstlight

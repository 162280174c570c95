// SPDX-License-Identifier: Apache-2.0
// What a tokenizer's construction works out from its spec: the look-ups of encoding, and the bytes of each token.
#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "firstlight/text/token_index.h"
#include "firstlight/text/tokenizer.h"

namespace firstlight {

/// Throws Error{bad_input} "tokenizer: WHAT".
[[noreturn]] void refuse_tokenizer(const std::string& what);

/// The spec must outlive it. Throws Error{bad_input} for a spec that contradicts itself.
class Vocabulary {
 public:
  explicit Vocabulary(const TokenizerSpec& spec);

  /// -1 if there is none; added tokens beyond the vocabulary are not in it.
  int32_t find(std::string_view token) const { return tokens_.find(token); }
  /// The symbol that one character begins as, -1 if it is none. Symbols from the vocabulary's size on stand for
  /// characters that are only part of tokens.
  int32_t symbol_of(std::string_view character) const;
  /// Of byte-level vocabularies the byte's letter, of others "<0x..>"; -1 where it is missing.
  int32_t id_of_byte(char byte) const { return byte_ids_[static_cast<unsigned char>(byte)]; }
  /// The text behind a symbol that is no token.
  std::string_view loose_character(int32_t symbol) const {
    return characters_[static_cast<size_t>(symbol) - spec_->tokens.size()];
  }
  const MergeIndex& merges() const { return merges_; }

 private:
  void insert_tokens();
  void find_bytes();
  void insert_merges();
  void insert_merge_ids();
  /// `last`: id of the result of the merge before, then of this one.
  void insert_merge(size_t rank, int32_t left, int32_t right, size_t& last);
  void insert_scored_merges();
  int32_t find_unreserved(std::string_view token) const;
  int32_t scored_symbol(std::string_view part);

  const TokenizerSpec* spec_;
  TokenIndex tokens_;
  MergeIndex merges_;
  std::array<int32_t, 256> byte_ids_;
  std::array<int32_t, 128> ascii_symbols_;
  StringTable characters_;      // loose characters of scored vocabularies
  TokenIndex character_index_;  // over characters_
};

/// The value of a token written "<0x..>", -1 for others.
int byte_token_value(std::string_view token);

/// The bytes that each token stands for, in one block.
class TokenBytes {
 public:
  /// `written(i)` is token i of n as the vocabulary (or the added token) writes it.
  TokenBytes(const TokenizerSpec& spec, size_t n, const std::function<std::string_view(size_t)>& written);
  std::string_view operator[](size_t id) const { return {bytes_.data() + begins_[id], begins_[id + 1] - begins_[id]}; }
  size_t size() const { return begins_.size() - 1; }
  bool is_byte(size_t id) const { return is_byte_[id]; }

 private:
  std::string bytes_;
  std::vector<uint32_t> begins_;
  std::vector<bool> is_byte_;
};

}  // namespace firstlight

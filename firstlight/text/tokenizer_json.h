// SPDX-License-Identifier: Apache-2.0
// The parts of a tokenizer.json: its two long lists, and the short ones (all but the vocabulary and the merges), from
// parsed JSON into a TokenizerSpec. For tokenizer_json*.cc and tokenizer_image.cc only.
#pragma once
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "firstlight/text/tokenizer.h"

namespace firstlight {

/// The two long lists as they stand in the file, and the text of everything else by its key.
struct TokenizerParts {
  StringTable tokens;         // in the file's order
  std::vector<uint32_t> ids;  // of each
  StringTable merges;
  bool has_vocab = false, has_merges = false;
  std::map<std::string, std::string_view, std::less<>> top, model;
};
/// The text must outlive what it returns.
TokenizerParts read_tokenizer_parts(std::string_view json);
/// All but tokens and merges, which `spec` has already. `n_entries`: of the vocabulary.
void read_short_parts(const TokenizerParts& parts, size_t n_entries, TokenizerSpec& spec);

/// JSON text → value; refuses equal keys. `part` is for messages: "tokenizer.json: PART: …".
nlohmann::json parse_json_part(std::string_view text, const std::string& part);

/// Throws Error{bad_input} "tokenizer.json: WHAT".
[[noreturn]] void refuse_json(const std::string& what);

/// Each takes null for a step that is not there. Call them in this order.
void read_normalizer(const nlohmann::json& value, TokenizerSpec& spec);
void read_pre_tokenizer(const nlohmann::json& value, TokenizerSpec& spec);
void read_decoder(const nlohmann::json& value, TokenizerSpec& spec);
void read_post_processor(const nlohmann::json& value, TokenizerSpec& spec);
/// `n_tokens`: entries of the vocabulary (less than spec.tokens.size() if it has holes).
void read_added_tokens(const nlohmann::json& value, size_t n_tokens, TokenizerSpec& spec);

}  // namespace firstlight

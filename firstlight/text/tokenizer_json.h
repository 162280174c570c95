// SPDX-License-Identifier: Apache-2.0
// The short parts of a tokenizer.json (all but the vocabulary and the merges), from parsed JSON into a TokenizerSpec.
// For tokenizer_json.cc and tokenizer_json_steps.cc only.
#pragma once
#include <nlohmann/json.hpp>
#include <string>

#include "firstlight/text/tokenizer.h"

namespace firstlight {

/// JSON text → value; refuses equal keys. `part` is for messages: "tokenizer.json: PART: …".
nlohmann::json parse_json_part(std::string_view text, const std::string& part);

/// Each takes null for a step that is not there. Call them in this order.
void read_normalizer(const nlohmann::json& value, TokenizerSpec& spec);
void read_pre_tokenizer(const nlohmann::json& value, TokenizerSpec& spec);
void read_decoder(const nlohmann::json& value, TokenizerSpec& spec);
void read_post_processor(const nlohmann::json& value, TokenizerSpec& spec);
/// `n_tokens`: entries of the vocabulary (less than spec.tokens.size() if it has holes).
void read_added_tokens(const nlohmann::json& value, size_t n_tokens, TokenizerSpec& spec);

}  // namespace firstlight

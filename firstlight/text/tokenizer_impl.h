// SPDX-License-Identifier: Apache-2.0
// Inside a Tokenizer. For tokenizer.cc and detokenizer.cc only.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "firstlight/text/added_tokens.h"
#include "firstlight/text/tokenizer.h"
#include "firstlight/text/vocabulary.h"

namespace firstlight {

struct Tokenizer::Impl {
  explicit Impl(TokenizerSpec given);

  /// Text as normalized added tokens are looked for in it. `memory` holds it if it differs.
  std::string_view normalize(std::string_view text, std::string& memory) const;

  TokenizerSpec spec;
  Vocabulary vocabulary;
  std::vector<int32_t> added_of;              // by id: index into spec.added, -1 for a token of the vocabulary alone
  std::vector<std::string> normalized_added;  // by index into spec.added; "" for those looked for as they are
  TokenBytes bytes;
  StringTable added_contents;
  TokenIndex added_index;  // over added_contents: index into spec.added
  AddedTokenMatcher raw_matcher, normalized_matcher;

 private:
  std::vector<int32_t> place_added() const;
  std::vector<std::string> normalize_added() const;
  std::string_view written(size_t id) const;
};

}  // namespace firstlight

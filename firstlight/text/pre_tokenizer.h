// SPDX-License-Identifier: Apache-2.0
// Where text is cut before merging: one hand-written scanner for each published pattern, without backtracking.
#pragma once
#include <cstddef>
#include <optional>
#include <string_view>

#include "firstlight/text/tokenizer.h"

namespace firstlight {

/// End of the piece that begins at `begin`, where a piece begins. Text is valid UTF-8, begin < text.size(). Time near
/// the piece's length. For llama_spm the piece is all of the text.
size_t piece_end(PreTokenizer pre, std::string_view text, size_t begin);

/// The scanner for a pattern as it stands in a tokenizer.json; nothing for an unknown one.
std::optional<PreTokenizer> pre_tokenizer_of_pattern(std::string_view pattern);

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// A tokenizer.json worked out once, offline: the same tokenizer without the walk through megabytes of JSON and without
// looking each merge's three tokens up. SmolLM2: 17 ms of CPU at every start become 5 (docs/performance.md).
#pragma once
#include <string>
#include <string_view>

#include "firstlight/text/tokenizer.h"

namespace firstlight {

/// The image of a tokenizer.json; the same bytes for the same text (docs/rank-checkpoint.md has the layout). Throws as
/// parse_tokenizer_json() and Tokenizer() do.
std::string make_tokenizer_image(std::string_view tokenizer_json);

/// The spec of the tokenizer.json that the image was made of. Every number in it is checked to be in range, so that any
/// bytes give an Error{bad_input} or a usable tokenizer; whether it is the right one, image_source() says.
TokenizerSpec parse_tokenizer_image(std::string_view image);

/// XXH3-128 of that tokenizer.json, 32 hexadecimal digits.
std::string_view image_source(std::string_view image);

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// What every tokenizer promises, however it was made, and what its making may throw: for both fuzz targets.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "firstlight/base/error.h"
#include "firstlight/text/tokenizer.h"
#include "firstlight/text/unicode.h"

namespace firstlight {

/// `parse` makes a spec of `data`: an Error, or a tokenizer whose every call keeps its promises. Aborts otherwise.
template <class Parse>
void expect_error_or_tokenizer(const uint8_t* data, size_t size, Parse parse) {
  const std::string_view file(reinterpret_cast<const char*>(data), size);
  try {
    const Tokenizer tokenizer(parse(file));
    // Some of the file itself, so that its tokens stand in the text.
    for (const std::string_view text : {std::string_view("Hello  wor\xCC\x81ld's 123\n\n \xE2\x96\x81x"),
                                        file.substr(0, 300), file.substr(size / 2, 300)}) {
      for (const bool special : {true, false}) {
        const std::vector<int> ids = tokenizer.encode(text, special, special);
        Detokenizer stream(tokenizer, special);
        for (const int id : ids) {
          if (id < 0 || id >= tokenizer.size() || !is_utf8(stream.push(id))) std::abort();
        }
        if (!is_utf8(stream.finish()) || !is_utf8(tokenizer.decode(ids, special))) std::abort();
      }
    }
  } catch (const Error& e) {
    if (e.kind() == ErrorKind::bug) std::abort();
  }
}

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// Any bytes as the image of a tokenizer.json: an Error, or a tokenizer whose every call keeps its promises.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "firstlight/base/error.h"
#include "firstlight/text/tokenizer_image.h"
#include "firstlight/text/unicode.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view image(reinterpret_cast<const char*>(data), size);
  try {
    const firstlight::Tokenizer tokenizer(firstlight::parse_tokenizer_image(image));
    // Some of the file itself, so that its tokens stand in the text.
    for (const std::string_view text : {std::string_view("Hello  wor\xCC\x81ld's 123\n\n \xE2\x96\x81x"),
                                        image.substr(0, 300), image.substr(size / 2, 300)}) {
      for (const bool special : {true, false}) {
        const std::vector<int> ids = tokenizer.encode(text, special, special);
        firstlight::Detokenizer stream(tokenizer, special);
        for (const int id : ids) {
          if (id < 0 || id >= tokenizer.size() || !firstlight::is_utf8(stream.push(id))) std::abort();
        }
        if (!firstlight::is_utf8(stream.finish()) || !firstlight::is_utf8(tokenizer.decode(ids, special))) std::abort();
      }
    }
  } catch (const firstlight::Error& e) {
    if (e.kind() == firstlight::ErrorKind::bug) std::abort();
  }
  return 0;
}

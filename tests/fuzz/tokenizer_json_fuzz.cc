// SPDX-License-Identifier: Apache-2.0
// Any bytes as a tokenizer.json: an Error, or a tokenizer whose every call keeps its promises.
#include "firstlight/text/tokenizer.h"
#include "tokenizer_promises.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  firstlight::expect_error_or_tokenizer(data, size, firstlight::parse_tokenizer_json);
  return 0;
}

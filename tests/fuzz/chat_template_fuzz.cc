// SPDX-License-Identifier: Apache-2.0
// Any bytes as a chat template: parsing and rendering end in a text or in an Error, soon. Its seeds
// are made by tools/make_chat_templates.py.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "firstlight/base/error.h"
#include "firstlight/text/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace firstlight;
  ChatTemplateLimits limits;
  limits.max_steps = 20'000;
  limits.max_output_bytes = 1u << 20;
  try {
    const ChatTemplate chat_template(std::string_view(reinterpret_cast<const char*>(data), size), limits);
    ChatTemplate::Options options;
    options.bos_token = "<s>";
    chat_template.render({{"system", "Be brief."}, {"user", "Hi \xc3\xa9"}, {"assistant", "<think>x</think>y"}},
                         options);
  } catch (const Error&) {
  }
  return 0;
}

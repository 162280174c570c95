// SPDX-License-Identifier: Apache-2.0
#include "firstlight/text/chat_template.h"

#include <utility>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/text/jinja_eval.h"
#include "firstlight/text/jinja_parser.h"
#include "firstlight/text/jinja_text.h"

namespace firstlight {
namespace {

// The largest template in use (with tools) is below 100 kB; parsing takes some 100 bytes of memory a byte.
constexpr size_t kMaxSourceBytes = 1u << 20;

jinja::Block parse_checked(std::string_view source, const ChatTemplateLimits& limits) {
  if (source.size() > kMaxSourceBytes) {
    throw Error(ErrorKind::bad_input,
                str("chat template: ", source.size(), " bytes, expected at most ", kMaxSourceBytes));
  }
  if (!jinja::is_valid_utf8(source)) throw Error(ErrorKind::bad_input, "chat template: is not UTF-8");
  return jinja::parse(source, limits.max_depth);
}

}  // namespace

struct ChatTemplate::Impl {
  jinja::Block block;
  jinja::Limits limits;
};

ChatTemplate::ChatTemplate(std::string_view source, ChatTemplateLimits limits)
    : impl_(std::make_unique<const Impl>(
          Impl{parse_checked(source, limits), {limits.max_steps, limits.max_depth, limits.max_output_bytes}})) {}
ChatTemplate::~ChatTemplate() = default;
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;

std::string ChatTemplate::render(const std::vector<ChatMessage>& messages, const Options& options) const {
  using namespace jinja;
  Evaluator evaluator(impl_->limits, options.now);
  Runtime& runtime = evaluator.runtime();
  Values list;
  for (const ChatMessage& message : messages) {
    std::vector<std::pair<Value, Value>> entries;
    entries.emplace_back(make_text("role"), make_text(valid_utf8(message.role)));
    entries.emplace_back(make_text("content"), make_text(valid_utf8(message.content)));
    list.push_back(runtime.dict(std::move(entries)));
  }
  evaluator.set_global("messages", runtime.sequence(std::move(list)));
  evaluator.set_global("tools", None{});
  evaluator.set_global("documents", None{});
  evaluator.set_global("add_generation_prompt", options.add_generation_prompt);
  // As transformers: a model without such a token leaves the name undefined.
  if (!options.bos_token.empty()) evaluator.set_global("bos_token", make_text(valid_utf8(options.bos_token)));
  if (!options.eos_token.empty()) evaluator.set_global("eos_token", make_text(valid_utf8(options.eos_token)));
  return evaluator.render(impl_->block);
}

}  // namespace firstlight

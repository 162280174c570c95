// SPDX-License-Identifier: Apache-2.0
// Chat templates: the subset of Jinja2 that models' templates use, as a small sandboxed evaluator (no I/O, no attribute
// access to anything but the given values; bounded steps, depth and output).
#pragma once
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace firstlight {

struct ChatMessage {
  std::string role;  ///< "system", "user", "assistant"
  std::string content;
};

struct ChatTemplateLimits {
  int64_t max_steps = 1'000'000;
  int max_depth = 64;
  size_t max_output_bytes = 64u << 20;
};

class ChatTemplate {
 public:
  /// Parses with trim_blocks and lstrip_blocks on, as transformers does. Throws Error{bad_input} with line number for a
  /// syntax error, Error{unsupported} naming a feature that is not known.
  explicit ChatTemplate(std::string_view source, ChatTemplateLimits limits = {});
  ~ChatTemplate();
  ChatTemplate(ChatTemplate&&) noexcept;

  struct Options {
    bool add_generation_prompt = true;
    std::string bos_token,
        eos_token;               ///< empty: the name is undefined in the template, as for a model without that token
    std::optional<std::tm> now;  ///< local time for strftime_now(); null: the system's clock
  };
  /// Throws Error{bad_input} with the template's own text for raise_exception(), and when a limit is passed.
  std::string render(const std::vector<ChatMessage>& messages, const Options& options) const;

 private:
  struct Impl;
  std::unique_ptr<const Impl> impl_;
};

}  // namespace firstlight

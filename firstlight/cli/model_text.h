// SPDX-License-Identifier: Apache-2.0
// The text side of a MODEL of any kind: tokenizer, chat template, stop tokens.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "firstlight/ckpt/manifest.h"
#include "firstlight/ckpt/source.h"
#include "firstlight/text/chat_template.h"
#include "firstlight/text/tokenizer.h"

namespace firstlight::cli {

struct ModelText {
  std::unique_ptr<Tokenizer> tokenizer;  ///< null: the model has none, and TextFiles::optional allowed it
  std::unique_ptr<ChatTemplate> chat;    ///< null: the model has none
  std::string bos_token, eos_token;      ///< as the chat template wants them
  std::vector<int> stop_ids;             ///< union of config.json, generation_config.json and GGUF

  /// The prompt of a conversation: through the chat template, or the bare text of the last message if there is none.
  std::vector<int> encode_chat(const std::vector<ChatMessage>& messages) const;
};

/// Where the files beside the weights come from. `read` gives a file's text or "" if there is none.
struct TextFiles {
  std::function<std::string(const std::string& name)> read;
  /// XXH3-128 that a file must have, where that is known; else null.
  std::function<std::string(const std::string& name)> listed_hash;
  const Source* gguf = nullptr;  ///< a GGUF carries its tokenizer itself
  bool optional = false;         ///< a model without tokenizer.json gives a ModelText without tokenizer
};

TextFiles text_files(const fs::path& directory);
TextFiles text_files(const fs::path& out, const Manifest& manifest);  ///< each file checked against the manifest
TextFiles text_files(const Source& source);

/// Throws Error{bad_input} naming the first byte of `text` that is not UTF-8. `what`: "-p", "line 3 of standard input".
void require_utf8(std::string_view text, std::string_view what);

/// The image of tokenizer.json (text/tokenizer_image.h) in a rank checkpoint.
inline constexpr const char* kTokenizerImage = "tokenizer.bin";

/// Throws Error{not_found} "… has no tokenizer.json".
ModelText load_text(const TextFiles& files);
/// The tokenizer alone, for a MODEL of any kind or a directory with just a tokenizer.json.
std::unique_ptr<Tokenizer> load_tokenizer(const fs::path& model);

}  // namespace firstlight::cli

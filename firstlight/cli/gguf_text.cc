// SPDX-License-Identifier: Apache-2.0
#include "firstlight/cli/gguf_text.h"

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ckpt/gguf_source.h"
#include "firstlight/ckpt/gguf_tokenizer.h"
#include "firstlight/text/gguf_tokenizer.h"

namespace firstlight::cli {

namespace {

const GgufMetadata& metadata_of(const Source& source) {
  const auto* gguf = dynamic_cast<const GgufSource*>(&source);
  if (gguf == nullptr) throw Error(ErrorKind::bug, str("'", source.path(), "' is no GGUF"));
  return gguf->gguf().metadata();
}

StringTable table(const GgufMetadata& metadata, std::string_view key) {
  StringTable strings;
  const std::vector<std::string_view>* texts = metadata.texts(key);
  if (texts == nullptr) return strings;
  size_t bytes = 0;
  for (const std::string_view text : *texts) bytes += text.size();
  strings.reserve(texts->size(), bytes);
  for (const std::string_view text : *texts) strings.push_back(text);
  return strings;
}

/// The text of the token whose id stands under `key`, "" if there is none.
std::string token_at(const GgufMetadata& metadata, std::string_view key) {
  const auto id = metadata.integer(key);
  const std::vector<std::string_view>* tokens = metadata.texts("tokenizer.ggml.tokens");
  if (!id || tokens == nullptr || *id < 0 || static_cast<size_t>(*id) >= tokens->size()) return "";
  return std::string((*tokens)[static_cast<size_t>(*id)]);
}

}  // namespace

TokenizerSpec gguf_tokenizer_spec(const Source& source) {
  const GgufMetadata& metadata = metadata_of(source);
  GgufTokenizerFields fields;
  fields.model = metadata.text("tokenizer.ggml.model").value_or("");
  fields.pre = metadata.text("tokenizer.ggml.pre").value_or("");
  fields.tokens = table(metadata, "tokenizer.ggml.tokens");
  fields.merges = table(metadata, "tokenizer.ggml.merges");
  fields.scores = metadata.numbers("tokenizer.ggml.scores").value_or(std::vector<float>());
  for (const int64_t type : metadata.integers("tokenizer.ggml.token_type").value_or(std::vector<int64_t>())) {
    fields.token_type.push_back(static_cast<int32_t>(type));
  }
  fields.bos_id = metadata.integer("tokenizer.ggml.bos_token_id");
  fields.eos_id = metadata.integer("tokenizer.ggml.eos_token_id");
  fields.unk_id = metadata.integer("tokenizer.ggml.unknown_token_id");
  fields.add_bos = gguf_adds_bos(metadata);
  fields.add_eos = gguf_adds_eos(metadata);
  fields.add_space_prefix = metadata.boolean("tokenizer.ggml.add_space_prefix");
  return make_gguf_tokenizer_spec(std::move(fields));
}

ModelText gguf_text(const Source& source) {
  const GgufMetadata& metadata = metadata_of(source);
  ModelText text;
  text.tokenizer = std::make_unique<Tokenizer>(gguf_tokenizer_spec(source));
  text.bos_token = token_at(metadata, "tokenizer.ggml.bos_token_id");
  text.eos_token = token_at(metadata, "tokenizer.ggml.eos_token_id");
  if (const auto chat = metadata.text("tokenizer.chat_template")) text.chat = std::make_unique<ChatTemplate>(*chat);
  text.stop_ids = stop_token_ids(source.config(), "");  // eos, eot and eom of the metadata
  return text;
}

}  // namespace firstlight::cli

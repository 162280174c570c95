// SPDX-License-Identifier: Apache-2.0
#include "firstlight/cli/model_text.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/cli/gguf_text.h"
#include "firstlight/text/tokenizer_image.h"
#include "firstlight/text/unicode.h"

namespace firstlight::cli {

namespace {

using Json = nlohmann::json;

Json parse_object(const std::string& text, const std::string& name) {
  Json json = Json::parse(text, nullptr, false);
  if (json.is_discarded() || !json.is_object()) throw Error(ErrorKind::bad_input, str(name, ": not a JSON object"));
  return json;
}

/// tokenizer_config.json gives special tokens as a string or as an added-token object.
std::string token_text(const Json& config, const char* key) {
  const auto it = config.find(key);
  if (it == config.end()) return "";
  if (it->is_string()) return it->get<std::string>();
  if (it->is_object() && it->contains("content") && (*it)["content"].is_string())
    return (*it)["content"].get<std::string>();
  return "";
}

/// The template under "chat_template" of a JSON file; "" if there is none.
std::string chat_template_in(const Json& file) {
  const auto it = file.find("chat_template");
  if (it == file.end()) return "";
  if (it->is_string()) return it->get<std::string>();
  if (!it->is_array()) return "";
  for (const Json& entry : *it) {  // several named templates: the one for plain conversations
    if (entry.is_object() && entry.value("name", "") == "default" && entry.contains("template") &&
        entry["template"].is_string()) {
      return entry["template"].get<std::string>();
    }
  }
  return "";
}

/// In the order that transformers looks; chat_template.json is the hub's older spelling.
std::string chat_template_text(const TextFiles& files, const Json& tokenizer_config) {
  if (std::string text = files.read("chat_template.jinja"); !text.empty()) return text;
  if (std::string text = chat_template_in(tokenizer_config); !text.empty()) return text;
  const std::string older = files.read("chat_template.json");
  return older.empty() ? "" : chat_template_in(parse_object(older, "chat_template.json"));
}

}  // namespace

void require_utf8(std::string_view text, std::string_view what) {
  size_t at = 0;
  while (at < text.size()) {
    const Utf8Step step = utf8_step(text.substr(at));
    if (!step.valid) break;
    at += step.size;
  }
  if (at == text.size()) return;
  throw Error(ErrorKind::bad_input,
              str(what, ": byte ", at, " (", static_cast<int>(static_cast<unsigned char>(text[at])),
                  ") is not UTF-8; convert the text, or leave the byte out"));
}

std::vector<int> ModelText::encode_chat(const std::vector<ChatMessage>& messages) const {
  if (chat == nullptr) return tokenizer->encode(messages.back().content);
  ChatTemplate::Options options;
  options.bos_token = bos_token;
  options.eos_token = eos_token;
  // The template writes BOS itself where the model wants one.
  return tokenizer->encode(chat->render(messages, options), /*add_special=*/false);
}

TextFiles text_files(const fs::path& directory) {
  return {[directory](const std::string& name) {
            const fs::path path = directory / name;
            std::error_code ignored;
            return fs::exists(path, ignored) ? read_text(path) : std::string();
          },
          {},
          nullptr};
}

TextFiles text_files(const fs::path& out, const Manifest& manifest) {
  return {[out, &manifest](const std::string& name) {
            return manifest.files.contains(name) ? read_listed(out, manifest, name) : std::string();
          },
          [&manifest](const std::string& name) {
            const auto found = manifest.files.find(name);
            return found == manifest.files.end() ? std::string() : found->second.xxh3_128;
          },
          nullptr};
}

TextFiles text_files(const Source& source) {
  TextFiles files;
  files.read = [&source](const std::string& name) {
    for (const AuxFile& file : source.aux_files()) {
      if (file.name == name) return file.content;
    }
    return std::string();
  };
  if (source.kind() == "gguf") files.gguf = &source;
  return files;
}

namespace {

/// From the image if the model has one, else from the JSON.
std::unique_ptr<Tokenizer> read_tokenizer(const TextFiles& files) {
  if (files.listed_hash) {
    if (const std::string image = files.read(kTokenizerImage); !image.empty()) {
      const std::string want = files.listed_hash("tokenizer.json");
      if (image_source(image) != want) {
        throw Error(ErrorKind::damaged,
                    str(kTokenizerImage, " was made of a tokenizer.json with XXH3-128 ", image_source(image),
                        ", the manifest lists ", want.empty() ? "none" : want));
      }
      files.read("tokenizer.json");  // for its hash: a bit flipped in any file is an error
      return std::make_unique<Tokenizer>(parse_tokenizer_image(image));
    }
  }
  const std::string json = files.read("tokenizer.json");
  if (json.empty() && files.optional) return nullptr;
  if (json.empty())
    throw Error(
        ErrorKind::not_found,
        "the model has no tokenizer.json (tokenizer.model alone is not enough); run, score and bench start take token "
        "ids: --ids FILE");
  return std::make_unique<Tokenizer>(parse_tokenizer_json(json));
}

}  // namespace

ModelText load_text(const TextFiles& files) {
  if (files.gguf != nullptr) return gguf_text(*files.gguf);
  ModelText text;
  // Of BOS and EOS tokenizer.json's post-processor decides, as in transformers 5, which leaves add_bos_token and
  // add_eos_token of tokenizer_config.json alone where there is a tokenizer.json.
  text.tokenizer = read_tokenizer(files);
  const std::string tokenizer_config = files.read("tokenizer_config.json");
  const Json config =
      tokenizer_config.empty() ? Json::object() : parse_object(tokenizer_config, "tokenizer_config.json");
  text.bos_token = token_text(config, "bos_token");
  text.eos_token = token_text(config, "eos_token");
  if (const std::string source = chat_template_text(files, config); !source.empty()) {
    text.chat = std::make_unique<ChatTemplate>(source);
  }
  const std::string model_config = files.read("config.json");
  if (!model_config.empty())
    text.stop_ids = stop_token_ids(parse_hf_config(model_config), files.read("generation_config.json"));
  if (text.tokenizer && !text.eos_token.empty()) {
    if (const auto eos = text.tokenizer->find(text.eos_token)) text.stop_ids.push_back(*eos);
  }
  std::sort(text.stop_ids.begin(), text.stop_ids.end());
  text.stop_ids.erase(std::unique(text.stop_ids.begin(), text.stop_ids.end()), text.stop_ids.end());
  return text;
}

std::unique_ptr<Tokenizer> load_tokenizer(const fs::path& model) {
  const auto has = [&](const char* name) { return fs::exists(model / name); };
  const bool of_a_checkpoint = has("READY") || has("manifest.json") || has("journal.jsonl");
  if (fs::is_directory(model) && !of_a_checkpoint && has("tokenizer.json")) {
    return std::make_unique<Tokenizer>(parse_tokenizer_json(read_text(model / "tokenizer.json")));
  }
  switch (model_kind(model)) {
    case ModelKind::rank_checkpoint: {
      const Manifest manifest = read_manifest(model);
      return read_tokenizer(text_files(model, manifest));
    }
    case ModelKind::hf_directory:
      throw Error(ErrorKind::not_found, str("'", model.string(), "' has no tokenizer.json"));
    case ModelKind::gguf:
      return std::make_unique<Tokenizer>(gguf_tokenizer_spec(*open_source(model)));
  }
  throw Error(ErrorKind::bug, "unknown model kind");
}

}  // namespace firstlight::cli

// SPDX-License-Identifier: Apache-2.0
// `tokenizer.ggml.pre` names the pattern that text is cut by; it decides, not the architecture (SmolLM2 is a `llama`
// that splits digits). The steps written for each are those of the family's own tokenizer.json on the hub.
#include "firstlight/ckpt/gguf_tokenizer.h"

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>
#include <tuple>
#include <unordered_map>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ckpt/source_json.h"

namespace firstlight {

namespace {

[[noreturn]] void bad(const std::string& what) { throw Error(ErrorKind::bad_input, "GGUF tokenizer: " + what); }
[[noreturn]] void unsupported(const std::string& what) {
  throw Error(ErrorKind::unsupported, "GGUF tokenizer: " + what);
}

enum TokenType { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

constexpr std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

struct Kind {
  bool spm = false;
  bool digits = false;            // digits are cut off one by one first
  std::string_view pattern = {};  // empty: GPT-2's, built into ByteLevel
  bool nfc = false, ignore_merges = false;
};
Kind kind_of(const GgufMetadata& metadata) {
  const auto model = metadata.text("tokenizer.ggml.model");
  if (!model) bad("metadata 'tokenizer.ggml.model' is missing");
  if (*model == "llama") return {.spm = true};
  if (*model != "gpt2") unsupported(str("model '", model->substr(0, 64), "' is not supported (gpt2 and llama are)"));
  const auto pre = metadata.text("tokenizer.ggml.pre");
  if (!pre) unsupported("there is no 'tokenizer.ggml.pre', so how text is cut is unknown");
  if (*pre == "gpt-2") return {};
  if (*pre == "smollm") return {.digits = true};
  if (*pre == "llama-bpe" || *pre == "llama3" || *pre == "llama-v3")
    return {.pattern = kLlama3Pattern, .ignore_merges = true};
  if (*pre == "qwen2" || *pre == "deepseek-r1-qwen") return {.pattern = kQwen2Pattern, .nfc = true};
  unsupported(
      str("pre-tokenizer '", pre->substr(0, 64), "' is not supported (gpt-2, smollm, llama-bpe and qwen2 are)"));
}

struct Vocabulary {
  const std::vector<std::string_view>* tokens = nullptr;
  std::vector<int64_t> types;
  std::unordered_map<std::string_view, int> ids;
};
Vocabulary read_vocabulary(const GgufMetadata& metadata) {
  Vocabulary v;
  v.tokens = metadata.texts("tokenizer.ggml.tokens");
  if (v.tokens == nullptr || v.tokens->empty()) bad("metadata 'tokenizer.ggml.tokens' is missing or empty");
  v.types = metadata.integers("tokenizer.ggml.token_type").value_or(std::vector<int64_t>(v.tokens->size(), kNormal));
  if (v.types.size() != v.tokens->size()) bad(str(v.types.size(), " token types for ", v.tokens->size(), " tokens"));
  v.ids.reserve(v.tokens->size());
  for (size_t i = 0; i < v.tokens->size(); ++i) {
    if (!v.ids.emplace((*v.tokens)[i], static_cast<int>(i)).second)
      bad(str("token '", (*v.tokens)[i].substr(0, 64), "' appears twice"));
  }
  return v;
}

std::optional<std::string_view> special(const GgufMetadata& metadata, const Vocabulary& v, const char* key) {
  const auto id = metadata.integer(key);
  if (!id || *id < 0 || *id >= static_cast<int64_t>(v.tokens->size())) return std::nullopt;
  return (*v.tokens)[static_cast<size_t>(*id)];
}

using Merge = std::pair<std::string_view, std::string_view>;

std::vector<Merge> stored_merges(const GgufMetadata& metadata, const Vocabulary& v) {
  const auto* lines = metadata.texts("tokenizer.ggml.merges");
  if (lines == nullptr) bad("metadata 'tokenizer.ggml.merges' is missing");
  std::vector<Merge> merges;
  merges.reserve(lines->size());
  std::string whole;
  for (const std::string_view line : *lines) {
    const size_t space = line.find(' ', 1);
    if (space == line.npos || space + 1 == line.size()) bad(str("merge '", line.substr(0, 64), "' is no pair"));
    merges.emplace_back(line.substr(0, space), line.substr(space + 1));
    whole.assign(merges.back().first).append(merges.back().second);
    if (!v.ids.contains(merges.back().first) || !v.ids.contains(merges.back().second) || !v.ids.contains(whole)) {
      bad(str("merge '", line.substr(0, 64), "' is of or to something that is no token"));
    }
  }
  return merges;
}

/// SentencePiece joins the neighbours whose union has the highest score. The same as a list of pairs: every way to
/// halve every token, by falling score, then by falling length of the halves (as transformers orders them).
std::vector<Merge> merges_from_scores(const GgufMetadata& metadata, const Vocabulary& v) {
  const auto scores = metadata.numbers("tokenizer.ggml.scores");
  if (!scores || scores->size() != v.tokens->size()) bad("as many scores as tokens are needed");
  struct Candidate {
    float score;
    size_t left_chars, right_chars;
    Merge merge;
  };
  const auto mergeable = [&](int id) {
    const int64_t type = v.types[static_cast<size_t>(id)];
    return type == kNormal || type == kUserDefined || type == kUnused;
  };
  std::vector<Candidate> candidates;
  for (size_t i = 0; i < v.tokens->size(); ++i) {
    const std::string_view token = (*v.tokens)[i];
    if (!mergeable(static_cast<int>(i))) continue;
    const auto starts_char = [](char c) { return (static_cast<unsigned char>(c) & 0xc0u) != 0x80u; };
    const auto n_chars = static_cast<size_t>(std::count_if(token.begin(), token.end(), starts_char));
    size_t left_chars = 0;
    std::vector<std::tuple<int, int, size_t, size_t>> halves;  // ids, bytes, characters
    for (size_t at = 1; at <= token.size(); ++at) {
      if (at < token.size() && !starts_char(token[at])) continue;
      ++left_chars;
      if (at == token.size()) break;
      const auto left = v.ids.find(token.substr(0, at)), right = v.ids.find(token.substr(at));
      if (left == v.ids.end() || right == v.ids.end() || !mergeable(left->second) || !mergeable(right->second))
        continue;
      halves.emplace_back(left->second, right->second, at, left_chars);
    }
    std::sort(halves.begin(), halves.end());
    for (const auto& [left, right, at, chars] : halves) {
      candidates.push_back({(*scores)[i], chars, n_chars - chars, {token.substr(0, at), token.substr(at)}});
    }
  }
  std::stable_sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) {
    return std::tie(a.score, a.left_chars, a.right_chars) > std::tie(b.score, b.left_chars, b.right_chars);
  });
  std::vector<Merge> merges;
  for (const Candidate& candidate : candidates) merges.push_back(candidate.merge);
  return merges;
}

void write_added_tokens(JsonWriter& json, const Vocabulary& v) {
  json.key("added_tokens").begin_array();
  for (size_t i = 0; i < v.tokens->size(); ++i) {
    const bool is_special = v.types[i] == kControl || v.types[i] == kUnknown;
    if ((!is_special && v.types[i] != kUserDefined) || (*v.tokens)[i].empty()) continue;
    json.begin_object().key("id").number(static_cast<int64_t>(i)).key("content").string((*v.tokens)[i]);
    for (const char* flag : {"single_word", "lstrip", "rstrip", "normalized"}) json.key(flag).boolean(false);
    json.key("special").boolean(is_special).end_object();
  }
  json.end_array();
}

void write_replace(JsonWriter& json, std::string_view what, std::string_view with) {
  json.begin_object()
      .key("type")
      .string("Replace")
      .key("pattern")
      .begin_object()
      .key("String")
      .string(what)
      .end_object();
  json.key("content").string(with).end_object();
}

void write_normalizer(JsonWriter& json, const GgufMetadata& metadata, const Kind& kind) {
  json.key("normalizer");
  if (kind.nfc) {
    json.begin_object().key("type").string("NFC").end_object();
  } else if (kind.spm) {
    json.begin_object().key("type").string("Sequence").key("normalizers").begin_array();
    if (metadata.boolean("tokenizer.ggml.add_space_prefix").value_or(true)) {
      json.begin_object().key("type").string("Prepend").key("prepend").string("▁").end_object();
    }
    write_replace(json, " ", "▁");
    json.end_array().end_object();
  } else {
    json.null();
  }
}

void write_byte_level(JsonWriter& json, bool trim_offsets, bool use_regex) {
  json.begin_object().key("type").string("ByteLevel").key("add_prefix_space").boolean(false);
  json.key("trim_offsets").boolean(trim_offsets).key("use_regex").boolean(use_regex).end_object();
}

void write_pre_tokenizer(JsonWriter& json, const Kind& kind) {
  json.key("pre_tokenizer");
  if (kind.spm) {
    json.null();
    return;
  }
  json.begin_object().key("type").string("Sequence").key("pretokenizers").begin_array();
  if (kind.digits) json.begin_object().key("type").string("Digits").key("individual_digits").boolean(true).end_object();
  if (!kind.pattern.empty()) {
    json.begin_object()
        .key("type")
        .string("Split")
        .key("pattern")
        .begin_object()
        .key("Regex")
        .string(kind.pattern)
        .end_object();
    json.key("behavior").string("Isolated").key("invert").boolean(false).end_object();
  }
  write_byte_level(json, true, kind.pattern.empty());
  json.end_array().end_object();
}

void write_post_processor(JsonWriter& json, const GgufMetadata& metadata, const Kind& kind, const Vocabulary& v) {
  const auto bos = gguf_adds_bos(metadata) ? special(metadata, v, "tokenizer.ggml.bos_token_id") : std::nullopt;
  const auto eos = gguf_adds_eos(metadata) ? special(metadata, v, "tokenizer.ggml.eos_token_id") : std::nullopt;
  json.key("post_processor");
  if (!bos && !eos) {
    if (kind.spm)
      json.null();
    else
      write_byte_level(json, false, true);
    return;
  }
  const auto token = [&](std::string_view id, int type) {
    json.begin_object()
        .key("SpecialToken")
        .begin_object()
        .key("id")
        .string(id)
        .key("type_id")
        .number(type)
        .end_object()
        .end_object();
  };
  const auto sequence = [&](const char* id, int type) {
    if (bos) token(*bos, type);
    json.begin_object()
        .key("Sequence")
        .begin_object()
        .key("id")
        .string(id)
        .key("type_id")
        .number(type)
        .end_object()
        .end_object();
    if (eos) token(*eos, type);
  };
  json.begin_object().key("type").string("TemplateProcessing");
  json.key("single").begin_array();
  sequence("A", 0);
  json.end_array().key("pair").begin_array();
  sequence("A", 0);
  sequence("B", 1);
  json.end_array().key("special_tokens").begin_object();
  const auto define = [&](std::string_view name) {
    json.key(name).begin_object().key("id").string(name);
    json.key("ids").begin_array().number(v.ids.at(name)).end_array();
    json.key("tokens").begin_array().string(name).end_array().end_object();
  };
  if (bos) define(*bos);
  if (eos && eos != bos) define(*eos);
  json.end_object().end_object();
}

void write_decoder(JsonWriter& json, const GgufMetadata& metadata, const Kind& kind) {
  json.key("decoder");
  if (!kind.spm) {
    write_byte_level(json, true, true);
    return;
  }
  json.begin_object().key("type").string("Sequence").key("decoders").begin_array();
  write_replace(json, "▁", " ");
  json.begin_object().key("type").string("ByteFallback").end_object();
  json.begin_object().key("type").string("Fuse").end_object();
  if (metadata.boolean("tokenizer.ggml.add_space_prefix").value_or(true)) {
    json.begin_object()
        .key("type")
        .string("Strip")
        .key("content")
        .string(" ")
        .key("start")
        .number(1)
        .key("stop")
        .number(0)
        .end_object();
  }
  json.end_array().end_object();
}

void write_model(JsonWriter& json, const GgufMetadata& metadata, const Kind& kind, const Vocabulary& v) {
  const std::vector<Merge> merges = kind.spm ? merges_from_scores(metadata, v) : stored_merges(metadata, v);
  const auto unknown = kind.spm ? special(metadata, v, "tokenizer.ggml.unknown_token_id") : std::nullopt;
  const bool has_bytes = std::find(v.types.begin(), v.types.end(), kByte) != v.types.end();
  json.key("model").begin_object().key("type").string("BPE").key("dropout").null();
  json.key("unk_token");
  unknown ? json.string(*unknown) : json.null();
  json.key("continuing_subword_prefix").null().key("end_of_word_suffix").null();
  json.key("fuse_unk").boolean(kind.spm).key("byte_fallback").boolean(kind.spm && has_bytes);
  json.key("ignore_merges").boolean(kind.ignore_merges);
  json.key("vocab").begin_object();
  for (size_t i = 0; i < v.tokens->size(); ++i) json.key((*v.tokens)[i]).number(static_cast<int64_t>(i));
  json.end_object();
  json.key("merges").begin_array();
  std::string pair;
  for (const Merge& merge : merges) {  // a pair on one line: 280,000 of them
    pair.clear();
    pair += '[';
    append_json_string(pair, merge.first);
    pair += ',';
    append_json_string(pair, merge.second);
    pair += ']';
    json.raw(pair);
  }
  json.end_array().end_object();
}

}  // namespace

bool gguf_adds_bos(const GgufMetadata& metadata) {
  const Kind kind = kind_of(metadata);
  return metadata.boolean("tokenizer.ggml.add_bos_token").value_or(kind.spm || kind.ignore_merges);
}
bool gguf_adds_eos(const GgufMetadata& metadata) {
  return metadata.boolean("tokenizer.ggml.add_eos_token").value_or(false);
}

std::string make_tokenizer_json(const GgufMetadata& metadata) {
  const Kind kind = kind_of(metadata);
  const Vocabulary v = read_vocabulary(metadata);
  if (metadata.boolean("tokenizer.ggml.remove_extra_whitespaces").value_or(false))
    unsupported("remove_extra_whitespaces is not supported");
  if (const GgufValue* map = metadata.find("tokenizer.ggml.precompiled_charsmap"); map != nullptr && map->count > 0) {
    unsupported("a precompiled_charsmap is not supported");
  }
  JsonWriter json;
  json.reserve(v.tokens->size() * 64);
  json.begin_object().key("version").string("1.0").key("truncation").null().key("padding").null();
  write_added_tokens(json, v);
  write_normalizer(json, metadata, kind);
  write_pre_tokenizer(json, kind);
  write_post_processor(json, metadata, kind, v);
  write_decoder(json, metadata, kind);
  write_model(json, metadata, kind, v);
  json.end_object();
  return json.take();
}

std::string make_tokenizer_config_json(const GgufMetadata& metadata, int max_context) {
  const Vocabulary v = read_vocabulary(metadata);
  JsonWriter json;
  json.begin_object().key("tokenizer_class").string("PreTrainedTokenizerFast");
  json.key("clean_up_tokenization_spaces").boolean(false).key("model_max_length").number(max_context);
  json.key("add_bos_token").boolean(gguf_adds_bos(metadata)).key("add_eos_token").boolean(gguf_adds_eos(metadata));
  constexpr std::array<std::pair<const char*, const char*>, 4> kNames{
      {{"bos_token", "tokenizer.ggml.bos_token_id"},
       {"eos_token", "tokenizer.ggml.eos_token_id"},
       {"unk_token", "tokenizer.ggml.unknown_token_id"},
       {"pad_token", "tokenizer.ggml.padding_token_id"}}};
  for (const auto& [name, key] : kNames) {
    if (const auto token = special(metadata, v, key)) json.key(name).string(*token);
  }
  json.end_object();
  return json.take();
}

}  // namespace firstlight

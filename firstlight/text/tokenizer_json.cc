// SPDX-License-Identifier: Apache-2.0
// tokenizer.json: the walk through the file, its vocabulary and merges. On the start path: 2 MB in a few milliseconds.
#include "firstlight/text/tokenizer_json.h"

#include <map>
#include <set>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/text/json_cursor.h"
#include "firstlight/text/unicode.h"
#include "firstlight/text/vocabulary.h"

namespace firstlight {

using Json = nlohmann::json;

void refuse_json(const std::string& what) { throw Error(ErrorKind::bad_input, "tokenizer.json: " + what); }

namespace {

constexpr size_t kLargestFile = 1u << 30;
/// Ids may leave holes, but a small file may not ask for a large table.
constexpr size_t kHolesPerToken = 16, kFreeHoles = 65536;

void read_vocab(JsonCursor& cursor, TokenizerParts& parts) {
  cursor.expect('{');
  if (cursor.take('}')) return;
  do {
    parts.tokens.push_back(cursor.string());
    cursor.expect(':');
    parts.ids.push_back(cursor.number());
  } while (cursor.take(','));
  cursor.expect('}');
}

/// "left right", or ["left", "right"] where a side may hold a space.
void read_merges(JsonCursor& cursor, TokenizerParts& parts) {
  cursor.expect('[');
  if (cursor.take(']')) return;
  do {
    if (cursor.take('[')) {
      parts.merges.push_back(cursor.string());
      cursor.expect(',');
      parts.merges.push_back(cursor.string());
      cursor.expect(']');
      continue;
    }
    const std::string_view merge = cursor.string();
    if (merge.starts_with("#version")) continue;
    const size_t space = merge.find(' ');
    if (space == std::string_view::npos || merge.find(' ', space + 1) != std::string_view::npos) {
      cursor.fail(str("merge '", to_valid_utf8(merge), "' is not two tokens with a space between"));
    }
    parts.merges.push_back(merge.substr(0, space));
    parts.merges.push_back(merge.substr(space + 1));
  } while (cursor.take(','));
  cursor.expect(']');
}

template <class OnKey>
void read_object(JsonCursor& cursor, OnKey on_key) {
  cursor.expect('{');
  if (cursor.take('}')) return;
  std::set<std::string> seen;
  do {
    const std::string key(cursor.string());
    if (!seen.insert(key).second) cursor.fail(str("key '", to_valid_utf8(key), "' is there twice"));
    cursor.expect(':');
    on_key(key);
  } while (cursor.take(','));
  cursor.expect('}');
}

}  // namespace

TokenizerParts read_tokenizer_parts(std::string_view json) {
  if (json.size() > kLargestFile) refuse_json(str("has ", json.size(), " bytes, at most ", kLargestFile));
  JsonCursor cursor(json, "tokenizer.json");
  TokenizerParts parts;
  parts.tokens.reserve(json.size() / 40, json.size() / 4);
  parts.ids.reserve(json.size() / 40);
  parts.merges.reserve(json.size() / 20, json.size() / 3);
  read_object(cursor, [&](const std::string& key) {
    if (key != "model" || cursor.peek() != '{') {
      parts.top[key] = cursor.value();
      return;
    }
    read_object(cursor, [&](const std::string& name) {
      if (name == "vocab" && cursor.peek() == '{') {
        read_vocab(cursor, parts);
        parts.has_vocab = true;
      } else if (name == "merges" && cursor.peek() == '[') {
        read_merges(cursor, parts);
        parts.has_merges = true;
      } else {
        parts.model[name] = cursor.value();
      }
    });
  });
  cursor.end();
  return parts;
}

namespace {

void place_tokens(TokenizerParts& parts, TokenizerSpec& spec) {
  const size_t n = parts.ids.size();
  uint32_t highest = 0;
  bool in_order = true;
  for (size_t i = 0; i < n; ++i) {
    highest = std::max(highest, parts.ids[i]);
    in_order = in_order && parts.ids[i] == i;
  }
  if (highest >= n * kHolesPerToken + kFreeHoles)
    refuse_json(str("id ", highest, " in a vocabulary of ", n, " tokens"));
  spec.tokens = std::move(parts.tokens);
  if (in_order) return;
  std::vector<int32_t> places(static_cast<size_t>(highest) + 1, -1);
  for (size_t i = 0; i < n; ++i) {
    int32_t& place = places[parts.ids[i]];
    if (place >= 0) {
      refuse_json(str("tokens '", spec.tokens[static_cast<size_t>(place)], "' and '", spec.tokens[i],
                      "' have the same id ", parts.ids[i]));
    }
    place = static_cast<int32_t>(i);
  }
  spec.tokens.permute(places);
}

Json model_value(const TokenizerParts& parts, const std::string& key) {
  const auto it = parts.model.find(key);
  return it == parts.model.end() ? Json() : parse_json_part(it->second, "model." + key);
}

bool model_flag(const TokenizerParts& parts, const std::string& key) {
  const Json value = model_value(parts, key);
  if (!value.is_null() && !value.is_boolean()) refuse_json("model." + key + " is neither true nor false");
  return value.is_boolean() && value.get<bool>();
}

std::string model_text(const TokenizerParts& parts, const std::string& key) {
  const Json value = model_value(parts, key);
  if (!value.is_null() && !value.is_string()) refuse_json("model." + key + " is not a string");
  return value.is_string() ? value.get<std::string>() : "";
}

void check_model(const TokenizerParts& parts) {
  const std::string type = model_text(parts, "type");
  if (type != "BPE" && !(type.empty() && parts.has_vocab && parts.has_merges)) {
    throw Error(ErrorKind::unsupported, "tokenizer.json: model type '" + type + "' is not supported, only BPE is");
  }
  if (!parts.has_vocab) refuse_json("model.vocab is not there, or no object");
  if (!parts.has_merges) refuse_json("model.merges is not there, or no list");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!model_text(parts, key).empty()) {
      throw Error(ErrorKind::unsupported, str("tokenizer.json: model.", key, " is not supported"));
    }
  }
  const Json dropout = model_value(parts, "dropout");
  if (!dropout.is_null() && !(dropout.is_number() && dropout.get<double>() == 0)) {
    throw Error(ErrorKind::unsupported, "tokenizer.json: model.dropout is not supported");
  }
}

void read_unknown(const TokenizerParts& parts, TokenizerSpec& spec) {
  const std::string unknown = model_text(parts, "unk_token");
  if (unknown.empty()) return;
  for (size_t id = 0; id < spec.tokens.size() && !spec.unk_id; ++id) {
    if (spec.tokens[id] == unknown) spec.unk_id = static_cast<int>(id);
  }
  // A byte-level vocabulary has every byte, so that nothing is unknown to it.
  if (!spec.unk_id && spec.kind != TokenizerSpec::Kind::byte_level_bpe) {
    refuse_json("unk_token '" + unknown + "' is not in the vocabulary");
  }
}

}  // namespace

nlohmann::json parse_json_part(std::string_view text, const std::string& part) {
  std::vector<std::set<std::string>> keys;
  const auto watch = [&](int, Json::parse_event_t event, Json& value) {
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key && !keys.back().insert(value.get<std::string>()).second) {
      refuse_json(str(part, ": key '", value.get<std::string>(), "' is there twice"));
    }
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), watch);
  } catch (const Json::exception& e) {
    refuse_json(str(part, ": ", e.what()));
  }
}

void read_short_parts(const TokenizerParts& parts, size_t n_entries, TokenizerSpec& spec) {
  const auto top = [&](const std::string& key) {
    const auto it = parts.top.find(key);
    return it == parts.top.end() ? Json() : parse_json_part(it->second, key);
  };
  spec.ignore_merges = model_flag(parts, "ignore_merges");
  spec.byte_fallback = model_flag(parts, "byte_fallback");
  spec.fuse_unk = model_flag(parts, "fuse_unk");
  read_normalizer(top("normalizer"), spec);
  read_pre_tokenizer(top("pre_tokenizer"), spec);
  read_decoder(top("decoder"), spec);
  read_post_processor(top("post_processor"), spec);
  read_added_tokens(top("added_tokens"), n_entries, spec);
  read_unknown(parts, spec);
  if (spec.byte_fallback && spec.kind == TokenizerSpec::Kind::byte_level_bpe) {
    throw Error(ErrorKind::unsupported,
                "tokenizer.json: model.byte_fallback with a ByteLevel pre_tokenizer is not supported");
  }
}

TokenizerSpec parse_tokenizer_json(std::string_view json) {
  TokenizerParts parts = read_tokenizer_parts(json);
  check_model(parts);
  const size_t n_entries = parts.ids.size();
  TokenizerSpec spec;
  place_tokens(parts, spec);
  spec.merges = std::move(parts.merges);
  read_short_parts(parts, n_entries, spec);
  return spec;
}

}  // namespace firstlight

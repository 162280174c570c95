// SPDX-License-Identifier: Apache-2.0
// Normalizer, pre-tokenizer, decoder, post-processor and added tokens of a tokenizer.json. What is not known to give
// the same ids as the Python package tokenizers is refused by its name.
#include <string>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/text/pre_tokenizer.h"
#include "firstlight/text/tokenizer_json.h"

namespace firstlight {

using Json = nlohmann::json;

namespace {

constexpr const char* kSpaceMark = "\xE2\x96\x81";  // ▁

[[noreturn]] void unsupported(const std::string& what) {
  throw Error(ErrorKind::unsupported, "tokenizer.json: " + what + " is not supported");
}

const Json& field(const Json& object, const char* key) {
  static const Json null;
  if (!object.is_object()) refuse_json(str("found ", object.dump(), ", expected an object"));
  const auto it = object.find(key);
  return it == object.end() ? null : *it;
}

std::string text_of(const Json& object, const char* key) {
  const Json& value = field(object, key);
  if (!value.is_string()) refuse_json(str("'", key, "' is not a string in ", object.dump()));
  return value.get<std::string>();
}

bool flag_of(const Json& object, const char* key) {
  const Json& value = field(object, key);
  if (!value.is_boolean()) refuse_json(str("'", key, "' is neither true nor false in ", object.dump()));
  return value.get<bool>();
}

bool flag_of(const Json& object, const char* key, bool otherwise) {
  return field(object, key).is_null() ? otherwise : flag_of(object, key);
}

int id_of(const Json& value) {
  if (!value.is_number_unsigned() || value.get<uint64_t>() > INT32_MAX) refuse_json(str("id ", value.dump()));
  return value.get<int>();
}

/// The steps of a Sequence (nested ones in line), or the one step, or none of null.
void flatten(const Json& value, const char* list, std::vector<Json>& steps) {
  if (value.is_null()) return;
  if (text_of(value, "type") != "Sequence") {
    steps.push_back(value);
    return;
  }
  const Json& inner = field(value, list);
  if (!inner.is_array()) refuse_json(str("a Sequence without '", list, "'"));
  for (const Json& step : inner) flatten(step, list, steps);
}

bool is_replace(const Json& step, const char* from, const char* to) {
  return text_of(step, "type") == "Replace" && field(step, "pattern") == Json{{"String", from}} &&
         text_of(step, "content") == to;
}

/// The cut that a Split step with a known pattern makes. The patterns match all text, so that isolating matches and
/// removing what lies between them are the same.
PreTokenizer read_split(const Json& step) {
  const Json& pattern = field(step, "pattern");
  if (!pattern.is_object() || !pattern.contains("Regex")) unsupported(str("pre_tokenizer Split with ", pattern.dump()));
  const auto known = pre_tokenizer_of_pattern(text_of(pattern, "Regex"));
  if (!known) unsupported(str("pre_tokenizer Split with the pattern ", pattern["Regex"].dump()));
  const std::string behavior = text_of(step, "behavior");
  const bool invert = flag_of(step, "invert");
  if (!(behavior == "Isolated" && !invert) && !(behavior == "Removed" && invert)) {
    unsupported(str("pre_tokenizer Split with behavior ", behavior, invert ? ", inverted," : ""));
  }
  return *known;
}

void read_byte_level(const std::vector<Json>& steps, TokenizerSpec& spec) {
  const Json& last = steps.back();
  if (flag_of(last, "add_prefix_space")) unsupported("pre_tokenizer ByteLevel with add_prefix_space");
  const bool gpt2 = flag_of(last, "use_regex", true);
  spec.kind = TokenizerSpec::Kind::byte_level_bpe;
  if (spec.marks.step != SpaceMarks::Step::none)
    unsupported("a normalizer that writes \"▁\" with pre_tokenizer ByteLevel");
  if (steps.size() == 1 && gpt2) {
    spec.pre = PreTokenizer::gpt2;
    return;
  }
  const std::string first = text_of(steps[0], "type");
  if (steps.size() == 2 && first == "Digits" && gpt2) {
    if (!flag_of(steps[0], "individual_digits")) unsupported("pre_tokenizer Digits without individual_digits");
    spec.pre = PreTokenizer::smollm;
  } else if (steps.size() == 2 && first == "Split" && !gpt2) {
    spec.pre = read_split(steps[0]);
  } else {
    std::string names;
    for (const Json& step : steps) names.append(" ").append(text_of(step, "type"));
    unsupported(str("the sequence of pre_tokenizers", names, gpt2 ? "" : " (without its pattern)"));
  }
}

void read_metaspace(const Json& step, TokenizerSpec& spec) {
  if (text_of(step, "replacement") != kSpaceMark) unsupported("pre_tokenizer Metaspace with " + step.dump());
  if (spec.marks.step != SpaceMarks::Step::none)
    unsupported("pre_tokenizer Metaspace with a normalizer that writes \"▁\"");
  std::string scheme = field(step, "prepend_scheme").is_null() ? "always" : text_of(step, "prepend_scheme");
  if (!flag_of(step, "add_prefix_space", true)) {
    if (scheme != "never" && !field(step, "prepend_scheme").is_null()) {
      refuse_json("pre_tokenizer Metaspace whose add_prefix_space contradicts its prepend_scheme");
    }
    scheme = "never";
  }
  spec.marks.step = SpaceMarks::Step::metaspace;
  if (scheme == "always") {
    spec.marks.prefix = SpaceMarks::Prefix::always;
  } else if (scheme == "first") {
    spec.marks.prefix = SpaceMarks::Prefix::first;
  } else if (scheme != "never") {
    refuse_json("pre_tokenizer Metaspace with prepend_scheme '" + scheme + "'");
  }
  spec.marks.split = flag_of(step, "split", true);
}

}  // namespace

void read_normalizer(const Json& value, TokenizerSpec& spec) {
  std::vector<Json> steps;
  flatten(value, "normalizers", steps);
  bool prepended = false, replaced = false;
  for (const Json& step : steps) {
    const std::string type = text_of(step, "type");
    if (type == "NFC" && !prepended && !replaced) {
      spec.nfc = true;
    } else if (type == "Prepend" && text_of(step, "prepend") == kSpaceMark && !prepended && !replaced) {
      prepended = true;
    } else if (is_replace(step, " ", kSpaceMark) && !replaced) {
      replaced = true;
    } else {
      unsupported(str("normalizer ", step.dump(), steps.size() > 1 ? " at its place" : ""));
    }
  }
  if (prepended && !replaced) unsupported("normalizer Prepend without Replace");
  if (replaced) spec.marks.step = SpaceMarks::Step::normalizer;
  if (prepended) spec.marks.prefix = SpaceMarks::Prefix::always;
}

void read_pre_tokenizer(const Json& value, TokenizerSpec& spec) {
  std::vector<Json> steps;
  flatten(value, "pretokenizers", steps);
  const std::string last = steps.empty() ? "" : text_of(steps.back(), "type");
  if (last == "ByteLevel") return read_byte_level(steps, spec);
  spec.kind = TokenizerSpec::Kind::spm_bpe;
  spec.pre = PreTokenizer::llama_spm;
  if (steps.empty()) return;
  if (steps.size() > 1 || last != "Metaspace") unsupported("pre_tokenizer " + value.dump());
  read_metaspace(steps[0], spec);
}

void read_decoder(const Json& value, TokenizerSpec& spec) {
  std::vector<Json> steps;
  flatten(value, "decoders", steps);
  if (spec.kind == TokenizerSpec::Kind::byte_level_bpe) {
    if (steps.size() != 1 || text_of(steps[0], "type") != "ByteLevel") {
      unsupported(str("decoder ", value.dump(), " with pre_tokenizer ByteLevel"));
    }
    return;
  }
  const auto is = [&](size_t i, const char* type) { return i < steps.size() && text_of(steps[i], "type") == type; };
  bool known = steps.size() >= 3 && is_replace(steps[0], kSpaceMark, " ") && is(1, "ByteFallback") && is(2, "Fuse");
  if (known && is(3, "Strip")) {
    known = text_of(steps[3], "content") == " " && field(steps[3], "start") == 1 && field(steps[3], "stop") == 0;
    spec.strip_first_space = true;
  }
  if (!known || steps.size() != (spec.strip_first_space ? 4u : 3u)) unsupported("decoder " + value.dump());
}

void read_post_processor(const Json& value, TokenizerSpec& spec) {
  std::vector<Json> steps;
  flatten(value, "processors", steps);
  bool templated = false;
  for (const Json& step : steps) {
    const std::string type = text_of(step, "type");
    if (type == "ByteLevel") continue;  // it only moves offsets
    if (type != "TemplateProcessing" || templated) unsupported("post_processor " + step.dump());
    templated = true;
    const Json& pieces = field(step, "single");
    if (!pieces.is_array()) refuse_json("post_processor TemplateProcessing without 'single'");
    int n_texts = 0;
    for (const Json& piece : pieces) {
      if (piece.is_object() && piece.contains("Sequence")) {
        if (text_of(piece["Sequence"], "id") != "A" || ++n_texts > 1) unsupported("post_processor " + pieces.dump());
        continue;
      }
      const std::string name = text_of(field(piece, "SpecialToken"), "id");
      const Json& ids = field(field(field(step, "special_tokens"), name.c_str()), "ids");
      if (!ids.is_array()) refuse_json("post_processor TemplateProcessing without the ids of '" + name + "'");
      for (const Json& id : ids) (n_texts == 0 ? spec.bos : spec.eos_suffix).push_back(id_of(id));
    }
    if (n_texts != 1) unsupported("post_processor " + pieces.dump());
  }
}

void read_added_tokens(const Json& value, size_t n_tokens, TokenizerSpec& spec) {
  if (value.is_null()) return;
  if (!value.is_array()) refuse_json("added_tokens is no list");
  for (const Json& entry : value) {
    AddedToken token;
    token.id = id_of(field(entry, "id"));
    token.content = text_of(entry, "content");
    token.special = flag_of(entry, "special");
    token.lstrip = flag_of(entry, "lstrip");
    token.rstrip = flag_of(entry, "rstrip");
    token.single_word = flag_of(entry, "single_word");
    token.normalized = flag_of(entry, "normalized");
    spec.added.push_back(std::move(token));
  }
  // The Python package gives tokens that are not in the vocabulary the ids from its number of entries on, whatever the
  // file says: where the two differ, the ids that people got there are not those of the file.
  size_t next = n_tokens;
  for (const AddedToken& token : spec.added) {
    const auto id = static_cast<size_t>(token.id);
    if (id < spec.tokens.size() && !spec.tokens[id].empty()) continue;
    if (id != next++)
      unsupported(str("added token '", token.content, "' with id ", id, " where ", next - 1, " is next"));
  }
}

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
#include "firstlight/text/gguf_tokenizer.h"

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/text/unicode.h"

namespace firstlight {
namespace {

enum TokenType : int32_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

[[noreturn]] void refuse_gguf(const std::string& what) { throw Error(ErrorKind::bad_input, "GGUF tokenizer: " + what); }

void read_pre(const std::string& pre, TokenizerSpec& spec) {
  if (pre == "gpt-2") {
    spec.pre = PreTokenizer::gpt2;
  } else if (pre == "smollm") {
    spec.pre = PreTokenizer::smollm;
  } else if (pre == "llama-bpe" || pre == "llama-v3" || pre == "llama3") {
    spec.pre = PreTokenizer::llama_bpe;
    spec.ignore_merges = true;  // as Llama 3's tokenizer.json says
  } else if (pre == "qwen2" || pre == "deepseek-r1-qwen") {
    spec.pre = PreTokenizer::qwen2;
    spec.nfc = true;  // as Qwen2's tokenizer.json says
  } else {
    throw Error(ErrorKind::unsupported, "GGUF tokenizer: pre-tokenizer '" + pre +
                                            "' is not supported; known are gpt-2, smollm, llama-bpe, qwen2");
  }
}

void split_merges(const StringTable& merges, TokenizerSpec& spec) {
  spec.merges.reserve(2 * merges.size(), merges.n_bytes());
  for (size_t i = 0; i < merges.size(); ++i) {
    const std::string_view merge = merges[i];
    const size_t space = merge.find(' ', 1);
    if (space == std::string_view::npos || space + 1 == merge.size()) {
      refuse_gguf(str("merge ", i, " is '", merge, "', not two tokens with a space between"));
    }
    spec.merges.push_back(merge.substr(0, space));
    spec.merges.push_back(merge.substr(space + 1));
  }
}

/// Control and unknown tokens are special; user-defined ones are found in text too, but shown.
void add_special_tokens(const GgufTokenizerFields& fields, TokenizerSpec& spec) {
  for (size_t id = 0; id < fields.token_type.size(); ++id) {
    const int32_t type = fields.token_type[id];
    if (type < kNormal || type > kByte) refuse_gguf(str("token ", id, " has type ", type, ", known are 1 to 6"));
    const std::string_view text = fields.tokens[id];
    if (text.empty() || (type != kUnknown && type != kControl && type != kUserDefined)) continue;
    AddedToken token;
    token.id = static_cast<int>(id);
    token.content = text;
    token.special = type != kUserDefined;
    spec.added.push_back(std::move(token));
  }
}

std::optional<int> checked_id(const std::optional<int64_t>& id, const char* name, size_t n_tokens) {
  if (!id) return std::nullopt;
  if (*id < 0 || static_cast<uint64_t>(*id) >= n_tokens)
    refuse_gguf(str(name, " is ", *id, " of ", n_tokens, " tokens"));
  return static_cast<int>(*id);
}

}  // namespace

TokenizerSpec make_gguf_tokenizer_spec(GgufTokenizerFields fields) {
  const size_t n = fields.tokens.size();
  if (n == 0) refuse_gguf("has no tokens");
  if (!fields.token_type.empty() && fields.token_type.size() != n) {
    refuse_gguf(str(fields.token_type.size(), " token types for ", n, " tokens"));
  }
  TokenizerSpec spec;
  bool add_bos = false;
  if (fields.model == "gpt2") {
    if (fields.merges.empty()) refuse_gguf("model 'gpt2' without merges");
    read_pre(fields.pre, spec);
    split_merges(fields.merges, spec);
    add_bos = spec.pre == PreTokenizer::llama_bpe;
  } else if (fields.model == "llama") {
    if (fields.scores.size() != n) refuse_gguf(str(fields.scores.size(), " scores for ", n, " tokens"));
    spec.kind = TokenizerSpec::Kind::spm_bpe;
    spec.pre = PreTokenizer::llama_spm;
    spec.scores = std::move(fields.scores);
    for (const int32_t type : fields.token_type)
      spec.reserved.push_back(type == kUnknown || type == kControl || type == kByte);
    spec.byte_fallback = true;
    spec.marks.step = SpaceMarks::Step::normalizer;
    if (fields.add_space_prefix.value_or(true)) {
      spec.marks.prefix = SpaceMarks::Prefix::always;
      spec.strip_first_space = true;
    }
    add_bos = true;
  } else {
    throw Error(ErrorKind::unsupported,
                "GGUF tokenizer: model '" + fields.model + "' is not supported; known are gpt2 and llama");
  }
  add_special_tokens(fields, spec);
  const auto bos = checked_id(fields.bos_id, "bos_token_id", n), eos = checked_id(fields.eos_id, "eos_token_id", n);
  const auto unknown = checked_id(fields.unk_id, "unknown_token_id", n);
  // A byte that a byte-level vocabulary lacks is nothing, as in the tokenizers that such files are made from.
  if (spec.kind == TokenizerSpec::Kind::spm_bpe) spec.unk_id = unknown;
  if (fields.add_bos.value_or(add_bos)) {
    if (!bos) refuse_gguf("adds a token before the text, but has no bos_token_id");
    spec.bos.push_back(*bos);
  }
  if (fields.add_eos.value_or(false)) {
    if (!eos) refuse_gguf("adds a token behind the text, but has no eos_token_id");
    spec.eos_suffix.push_back(*eos);
  }
  spec.tokens = std::move(fields.tokens);
  return spec;
}

}  // namespace firstlight

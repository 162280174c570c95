// SPDX-License-Identifier: Apache-2.0
// Decoding, at once and token by token.
#include "firstlight/text/tokenizer.h"
#include "firstlight/text/tokenizer_impl.h"
#include "firstlight/text/unicode.h"

namespace firstlight {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

/// Bytes of a run of byte tokens: text if all of it is, else one U+FFFD for each.
void append_byte_run(std::string_view run, std::string& out) {
  if (is_utf8(run)) {
    out.append(run);
  } else {
    for (size_t i = 0; i < run.size(); ++i) out.append(kReplacement);
  }
}

/// What of `pending` is certain, moved out of it; each ill-formed part becomes U+FFFD.
std::string take_certain(std::string& pending) {
  std::string out;
  std::string_view rest = pending;
  while (!rest.empty()) {
    const Utf8Step step = utf8_step(rest);
    if (step.unfinished) break;
    if (step.valid) {
      out.append(rest.substr(0, step.size));
    } else {
      out.append(kReplacement);
    }
    rest.remove_prefix(step.size);
  }
  pending = std::string(rest);
  return out;
}

}  // namespace

std::string Tokenizer::decode(const std::vector<int>& ids, bool skip_special) const {
  const bool byte_level = impl_->spec.kind == TokenizerSpec::Kind::byte_level_bpe;
  std::string out, run;
  for (const int id : ids) {
    if (skip_special && is_special(id)) continue;
    if (!byte_level && is_byte(id)) {
      run.append(bytes_of(id));
      continue;
    }
    if (bytes_of(id).empty()) continue;  // out of range, or a hole
    append_byte_run(run, out);
    run.clear();
    out.append(bytes_of(id));
  }
  append_byte_run(run, out);
  if (byte_level) return is_utf8(out) ? out : to_valid_utf8(out);
  if (impl_->spec.strip_first_space && out.starts_with(' ')) out.erase(0, 1);
  return out;
}

Detokenizer::Detokenizer(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(&tokenizer), skip_special_(skip_special) {}

void Detokenizer::end_byte_run(std::string& out) {
  append_byte_run(pending_, out);
  pending_.clear();
}

std::string Detokenizer::without_first_space(std::string text) {
  if (first_ && !text.empty()) {
    first_ = false;
    if (tokenizer_->spec().strip_first_space && text[0] == ' ') text.erase(0, 1);
  }
  return text;
}

std::string Detokenizer::push(int id) {
  const std::string_view bytes = tokenizer_->bytes_of(id);
  if (bytes.empty() || (skip_special_ && tokenizer_->is_special(id))) return "";
  if (tokenizer_->spec().kind == TokenizerSpec::Kind::byte_level_bpe) {
    pending_.append(bytes);
    return take_certain(pending_);
  }
  std::string out;
  if (tokenizer_->is_byte(id)) {
    pending_.append(bytes);  // whether a run of bytes is text is known at its end
  } else {
    end_byte_run(out);
    out.append(bytes);
  }
  return without_first_space(std::move(out));
}

std::string Detokenizer::finish() {
  std::string out;
  if (tokenizer_->spec().kind == TokenizerSpec::Kind::byte_level_bpe) {
    out = to_valid_utf8(pending_);
    pending_.clear();
    return out;
  }
  end_byte_run(out);
  return without_first_space(std::move(out));
}

}  // namespace firstlight

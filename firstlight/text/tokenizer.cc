// SPDX-License-Identifier: Apache-2.0
// Encoding: added tokens are cut out, the text between is normalised, cut into pieces, and each piece is merged.
#include "firstlight/text/tokenizer.h"

#include <algorithm>

#include "firstlight/base/str.h"
#include "firstlight/text/bpe.h"
#include "firstlight/text/byte_alphabet.h"
#include "firstlight/text/pre_tokenizer.h"
#include "firstlight/text/tokenizer_impl.h"
#include "firstlight/text/unicode.h"

namespace firstlight {
namespace {

constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // ▁

void append_with_marks(std::string_view text, std::string& out) {
  for (const char c : text) {
    if (c == ' ') {
      out.append(kSpaceMark);
    } else {
      out.push_back(c);
    }
  }
}

/// One call of encode.
class Encoder {
 public:
  Encoder(const TokenizerSpec& spec, const Vocabulary& vocabulary, std::vector<int>& ids)
      : spec_(spec), vocabulary_(vocabulary), merger_(vocabulary.merges()), ids_(ids) {}

  /// Text between added tokens, normalised. `is_first`: it begins the whole text.
  void encode(std::string_view text, bool is_first) {
    if (spec_.kind == TokenizerSpec::Kind::byte_level_bpe) {
      for (size_t begin = 0; begin < text.size();) {
        const size_t end = piece_end(spec_.pre, text, begin);
        encode_bytes(text.substr(begin, end - begin));
        begin = end;
      }
    } else if (spec_.marks.step == SpaceMarks::Step::metaspace) {
      encode_metaspace(text, is_first);
    } else {
      encode_characters(text);
    }
  }

 private:
  void encode_bytes(std::string_view piece) {
    if (spec_.ignore_merges) {
      letters_.clear();
      for (const char c : piece) append_utf8(letters_, kByteAlphabet.letter_of[static_cast<unsigned char>(c)]);
      if (take_whole(letters_)) return;
    }
    for (const char c : piece) {
      const int32_t id = vocabulary_.id_of_byte(c);
      if (id >= 0) {
        add_known(id);
      } else {
        add_unknown();
      }
    }
    merge();
  }

  void encode_metaspace(std::string_view text, bool is_first) {
    marked_.clear();
    const SpaceMarks::Prefix prefix = spec_.marks.prefix;
    const bool wanted = prefix == SpaceMarks::Prefix::always || (prefix == SpaceMarks::Prefix::first && is_first);
    if (wanted && !text.starts_with(' ') && !text.starts_with(kSpaceMark)) marked_.append(kSpaceMark);
    append_with_marks(text, marked_);
    const std::string_view marked = marked_;
    if (!spec_.marks.split) return encode_characters(marked);
    for (size_t begin = 0; begin < marked.size();) {
      const size_t next =
          marked.find(kSpaceMark, marked.substr(begin).starts_with(kSpaceMark) ? begin + kSpaceMark.size() : begin);
      const size_t end = std::min(next, marked.size());
      encode_characters(marked.substr(begin, end - begin));
      begin = end;
    }
  }

  void encode_characters(std::string_view piece) {
    if (piece.empty() || (spec_.ignore_merges && take_whole(piece))) return;
    for (size_t i = 0; i < piece.size();) {
      const std::string_view character = piece.substr(i, utf8_size(piece[i]));
      i += character.size();
      if (const int32_t symbol = vocabulary_.symbol_of(character); symbol >= 0) {
        add_known(symbol);
      } else if (!add_as_bytes(character, symbols_)) {
        add_unknown();
      }
    }
    merge();
  }

  bool take_whole(std::string_view piece) {
    const int32_t id = vocabulary_.find(piece);
    if (id >= 0) ids_.push_back(id);
    return id >= 0;
  }

  void add_known(int32_t symbol) {
    flush_unknown();
    symbols_.push_back(symbol);
  }

  /// An unknown character before them comes out behind the bytes: so does the Python package tokenizers.
  bool add_as_bytes(std::string_view character, std::vector<int32_t>& out) {
    if (!spec_.byte_fallback) return false;
    if (std::any_of(character.begin(), character.end(), [&](char c) { return vocabulary_.id_of_byte(c) < 0; })) {
      return false;
    }
    for (const char c : character) out.push_back(vocabulary_.id_of_byte(c));
    return true;
  }

  /// Without an unknown token, a character that the vocabulary lacks is nothing.
  void add_unknown() {
    if (!spec_.fuse_unk) flush_unknown();
    unknown_ = spec_.unk_id.has_value();
  }

  void flush_unknown() {
    if (unknown_) symbols_.push_back(*spec_.unk_id);
    unknown_ = false;
  }

  void merge() {
    flush_unknown();
    const size_t begin = ids_.size();
    merger_.merge(symbols_, ids_);
    symbols_.clear();
    if (!spec_.scores.empty()) spell_out(begin);
  }

  /// Characters that are no token by themselves and did not merge.
  void spell_out(size_t begin) {
    const auto n = static_cast<int32_t>(spec_.tokens.size());
    if (std::all_of(ids_.begin() + static_cast<std::ptrdiff_t>(begin), ids_.end(), [&](int id) { return id < n; }))
      return;
    const std::vector<int> merged(ids_.begin() + static_cast<std::ptrdiff_t>(begin), ids_.end());
    ids_.resize(begin);
    for (const int symbol : merged) {
      if (symbol < n) {
        ids_.push_back(symbol);
      } else if (!add_as_bytes(vocabulary_.loose_character(symbol), ids_) && spec_.unk_id) {
        ids_.push_back(*spec_.unk_id);
      }
    }
  }

  const TokenizerSpec& spec_;
  const Vocabulary& vocabulary_;
  Merger merger_;
  std::vector<int>& ids_;
  std::vector<int32_t> symbols_;
  std::string letters_, marked_;
  bool unknown_ = false;
};

}  // namespace

Tokenizer::Impl::Impl(TokenizerSpec given)
    : spec(std::move(given)),
      vocabulary(spec),
      added_of(place_added()),
      normalized_added(normalize_added()),
      bytes(spec, added_of.size(), [this](size_t id) { return written(id); }),
      added_index(added_contents, spec.added.size()) {
  for (size_t i = 0; i < spec.added.size(); ++i) {
    const AddedToken& token = spec.added[i];
    added_contents.push_back(token.content);
    const bool fresh = added_index.insert(static_cast<uint32_t>(i));
    const bool found = token.normalized ? normalized_matcher.add(normalized_added[i], static_cast<int>(i))
                                        : raw_matcher.add(token.content, static_cast<int>(i));
    if (!fresh || !found) refuse_tokenizer(str("added token '", token.content, "' is there twice"));
  }
  const auto check = [&](int id) {
    if (id < 0 || static_cast<size_t>(id) >= bytes.size())
      refuse_tokenizer(str("id ", id, " of ", bytes.size(), " tokens"));
  };
  if (spec.unk_id) check(*spec.unk_id);
  for (const int id : spec.bos) check(id);
  for (const int id : spec.eos_suffix) check(id);
}

std::vector<int32_t> Tokenizer::Impl::place_added() const {
  const size_t n = spec.tokens.size();
  std::vector<int32_t> places(n, -1);
  for (size_t i = 0; i < spec.added.size(); ++i) {
    const AddedToken& token = spec.added[i];
    if (token.content.empty()) refuse_tokenizer(str("an added token without text, id ", token.id));
    if (!is_utf8(token.content)) refuse_tokenizer(str("added token ", token.id, " is not UTF-8"));
    if (token.id < 0 || static_cast<size_t>(token.id) >= n + spec.added.size()) {
      refuse_tokenizer(str("added token '", token.content, "' has id ", token.id, " beside ", n, " tokens"));
    }
    const auto id = static_cast<size_t>(token.id);
    const int32_t known = vocabulary.find(token.content);
    if ((known >= 0 && known != token.id) || (id < n && known < 0 && !spec.tokens[id].empty())) {
      refuse_tokenizer(str("added token '", token.content, "' has id ", token.id, ", the vocabulary says ",
                           known >= 0 ? str(known) : str("that is '", spec.tokens[id], "'")));
    }
    if (id >= places.size()) places.resize(id + 1, -1);
    if (places[id] >= 0) refuse_tokenizer(str("two added tokens have id ", token.id));
    places[id] = static_cast<int32_t>(i);
  }
  return places;
}

std::vector<std::string> Tokenizer::Impl::normalize_added() const {
  std::vector<std::string> texts(spec.added.size());
  for (size_t i = 0; i < texts.size(); ++i) {
    if (!spec.added[i].normalized) continue;
    std::string memory;
    texts[i] = normalize(spec.added[i].content, memory);
  }
  return texts;
}

std::string_view Tokenizer::Impl::written(size_t id) const {
  if (added_of[id] < 0) return id < spec.tokens.size() ? spec.tokens[id] : std::string_view();
  const auto i = static_cast<size_t>(added_of[id]);
  return spec.added[i].normalized ? normalized_added[i] : spec.added[i].content;
}

std::string_view Tokenizer::Impl::normalize(std::string_view text, std::string& memory) const {
  if (spec.nfc && !is_surely_nfc(text)) {
    memory = to_nfc(text);
    text = memory;
  }
  if (spec.marks.step != SpaceMarks::Step::normalizer || text.empty()) return text;
  std::string marked;
  marked.reserve(text.size() + text.size() / 4 + kSpaceMark.size());
  if (spec.marks.prefix != SpaceMarks::Prefix::none) marked.append(kSpaceMark);
  append_with_marks(text, marked);
  memory = std::move(marked);
  return memory;
}

Tokenizer::Tokenizer(TokenizerSpec spec) : impl_(std::make_unique<const Impl>(std::move(spec))) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;

std::vector<int> Tokenizer::encode(std::string_view text, bool add_special, bool parse_special) const {
  const TokenizerSpec& spec = impl_->spec;
  std::string valid;
  if (!is_utf8(text)) {
    valid = to_valid_utf8(text);
    text = valid;
  }
  std::vector<int> ids;
  if (add_special) ids = spec.bos;
  Encoder encoder(spec, impl_->vocabulary, ids);
  std::string memory;
  for (const auto& raw : impl_->raw_matcher.split(text, spec.added, parse_special)) {
    if (raw.token >= 0) {
      ids.push_back(spec.added[static_cast<size_t>(raw.token)].id);
      continue;
    }
    const std::string_view normal = impl_->normalize(text.substr(raw.begin, raw.end - raw.begin), memory);
    for (const auto& piece : impl_->normalized_matcher.split(normal, spec.added, parse_special)) {
      if (piece.token >= 0) {
        ids.push_back(spec.added[static_cast<size_t>(piece.token)].id);
      } else {
        encoder.encode(normal.substr(piece.begin, piece.end - piece.begin), raw.begin == 0 && piece.begin == 0);
      }
    }
  }
  if (add_special) ids.insert(ids.end(), spec.eos_suffix.begin(), spec.eos_suffix.end());
  return ids;
}

std::string_view Tokenizer::bytes_of(int id) const {
  return id < 0 || id >= size() ? std::string_view() : impl_->bytes[static_cast<size_t>(id)];
}

bool Tokenizer::is_special(int id) const {
  if (id < 0 || id >= size()) return false;
  const int32_t added = impl_->added_of[static_cast<size_t>(id)];
  return added >= 0 && impl_->spec.added[static_cast<size_t>(added)].special;
}

bool Tokenizer::is_byte(int id) const {
  return id >= 0 && id < size() && impl_->bytes.is_byte(static_cast<size_t>(id));
}

std::optional<int> Tokenizer::find(std::string_view token) const {
  if (const int32_t added = impl_->added_index.find(token); added >= 0) {
    return impl_->spec.added[static_cast<size_t>(added)].id;
  }
  const int32_t id = impl_->vocabulary.find(token);
  return id < 0 ? std::nullopt : std::optional<int>(id);
}

int Tokenizer::size() const { return static_cast<int>(impl_->bytes.size()); }

const TokenizerSpec& Tokenizer::spec() const { return impl_->spec; }

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
#include "firstlight/text/vocabulary.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <tuple>

#include "firstlight/base/str.h"
#include "firstlight/text/byte_alphabet.h"
#include "firstlight/text/unicode.h"

namespace firstlight {
void refuse_tokenizer(const std::string& what) { throw Error(ErrorKind::bad_input, "tokenizer: " + what); }

namespace {

/// Pairs of scored tokens are found by trying every cut: quadratic in a token's length. Real ones have at most 48
/// bytes.
constexpr size_t kLongestScoredToken = 1024;
/// Above this the loose characters' symbols would leave 32 bits.
constexpr size_t kMostTokens = 1u << 30;
/// Look-ups started ahead of the one that is waited for.
constexpr size_t kAhead = 32;

size_t count_characters(const TokenizerSpec& spec) {
  size_t n = 0;
  if (!spec.scores.empty() && spec.merges.empty()) {
    for (size_t i = 0; i < spec.tokens.size(); ++i) n += spec.tokens[i].size();
  }
  return n;
}

}  // namespace

int byte_token_value(std::string_view token) {
  if (token.size() != 6 || token.substr(0, 3) != "<0x" || token[5] != '>') return -1;
  int value = 0;
  for (const char c : token.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                             : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

Vocabulary::Vocabulary(const TokenizerSpec& spec)
    : spec_(&spec),
      tokens_(spec.tokens, spec.tokens.size()),
      merges_(spec.merge_ids.empty() ? spec.merges.size() / 2 : spec.merge_ids.size()),
      character_index_(characters_, count_characters(spec)) {
  const size_t n = spec.tokens.size();
  if (n > kMostTokens) refuse_tokenizer(str(n, " tokens, at most ", kMostTokens));
  if (!spec.scores.empty() && spec.scores.size() != n)
    refuse_tokenizer(str(spec.scores.size(), " scores for ", n, " tokens"));
  if (!spec.reserved.empty() && spec.reserved.size() != n) {
    refuse_tokenizer(str(spec.reserved.size(), " token types for ", n, " tokens"));
  }
  insert_tokens();
  find_bytes();
  if (!spec.merge_ids.empty()) {
    insert_merge_ids();
  } else if (!spec.merges.empty()) {
    insert_merges();
  } else if (!spec.scores.empty()) {
    insert_scored_merges();
  }
  for (size_t c = 0; c < ascii_symbols_.size(); ++c) {
    const char character = static_cast<char>(c);
    ascii_symbols_[c] = find_unreserved({&character, 1});
    if (ascii_symbols_[c] < 0 && !characters_.empty()) {
      const int32_t loose = character_index_.find({&character, 1});
      if (loose >= 0) ascii_symbols_[c] = static_cast<int32_t>(n) + loose;
    }
  }
}

void Vocabulary::insert_tokens() {
  const StringTable& tokens = spec_->tokens;
  std::array<uint64_t, kAhead> hashes;
  for (size_t begin = 0; begin < tokens.size(); begin += kAhead) {
    const size_t end = std::min(begin + kAhead, tokens.size());
    for (size_t id = begin; id < end; ++id) {
      hashes[id - begin] = TokenIndex::hash(tokens[id]);
      tokens_.prefetch(hashes[id - begin]);
    }
    for (size_t id = begin; id < end; ++id) {
      if (tokens[id].empty()) continue;
      if (!is_utf8(tokens[id])) refuse_tokenizer(str("token ", id, " is not UTF-8"));
      if (!tokens_.insert(static_cast<uint32_t>(id), hashes[id - begin])) {
        refuse_tokenizer(str("token '", tokens[id], "' has the ids ", tokens_.find(tokens[id]), " and ", id));
      }
    }
  }
}

void Vocabulary::find_bytes() {
  for (int byte = 0; byte < 256; ++byte) {
    std::string token;
    if (spec_->kind == TokenizerSpec::Kind::byte_level_bpe) {
      append_utf8(token, kByteAlphabet.letter_of[static_cast<size_t>(byte)]);
    } else {
      constexpr std::string_view kDigits = "0123456789ABCDEF";
      token =
          std::string("<0x") + kDigits[static_cast<size_t>(byte) / 16] + kDigits[static_cast<size_t>(byte) % 16] + ">";
    }
    byte_ids_[static_cast<size_t>(byte)] = find(token);
  }
}

void Vocabulary::insert_merges() {
  const StringTable& merges = spec_->merges;
  if (merges.size() % 2 != 0) refuse_tokenizer("a merge with one side");
  std::array<uint64_t, kAhead> hashes;
  std::array<int32_t, kAhead> ids;
  size_t last = 0;
  for (size_t begin = 0; begin < merges.size(); begin += kAhead) {
    const size_t end = std::min(begin + kAhead, merges.size());
    for (size_t i = begin; i < end; ++i) {
      hashes[i - begin] = TokenIndex::hash(merges[i]);
      tokens_.prefetch(hashes[i - begin]);
    }
    for (size_t i = begin; i < end; ++i) ids[i - begin] = tokens_.find(merges[i], hashes[i - begin]);
    for (size_t i = begin; i < end; i += 2) {
      merges_.prefetch(static_cast<uint32_t>(ids[i - begin]), static_cast<uint32_t>(ids[i + 1 - begin]));
    }
    for (size_t i = begin; i < end; i += 2) insert_merge(i / 2, ids[i - begin], ids[i + 1 - begin], last);
  }
}

void Vocabulary::insert_merge_ids() {
  const std::vector<MergeIds>& merges = spec_->merge_ids;
  for (size_t i = 0; i < merges.size(); ++i) {
    const MergeIds& merge = merges[i];
    if (std::max({merge.left, merge.right, merge.result}) >= spec_->tokens.size()) {
      refuse_tokenizer(str("merge ", i, " of tokens ", merge.left, " and ", merge.right, " into ", merge.result, " of ",
                           spec_->tokens.size()));
    }
    if (i + kAhead < merges.size()) merges_.prefetch(merges[i + kAhead].left, merges[i + kAhead].right);
    merges_.insert(merge.left, merge.right, {static_cast<uint32_t>(i), static_cast<int32_t>(merge.result)});
  }
}

void Vocabulary::insert_merge(size_t rank, int32_t left, int32_t right, size_t& last) {
  const std::string_view first = spec_->merges[2 * rank], second = spec_->merges[2 * rank + 1];
  const auto unknown = [&](std::string_view token) {
    refuse_tokenizer(str("merge ", rank, " names '", to_valid_utf8(token), "', which is not in the vocabulary"));
  };
  if (left < 0) unknown(first);
  if (right < 0) unknown(second);
  // Vocabularies made by training hold the merges' results in order: the next one saves most of the searches.
  const std::string_view next = last + 1 < spec_->tokens.size() ? spec_->tokens[last + 1] : std::string_view();
  auto result = static_cast<int32_t>(last + 1);
  if (next.size() != first.size() + second.size() || !next.starts_with(first) || !next.ends_with(second)) {
    const std::string joined = std::string(first).append(second);
    result = find(joined);
    if (result < 0) unknown(joined);
  }
  last = static_cast<size_t>(result);
  merges_.insert(static_cast<uint32_t>(left), static_cast<uint32_t>(right), {static_cast<uint32_t>(rank), result});
}

int32_t Vocabulary::find_unreserved(std::string_view token) const {
  const int32_t id = find(token);
  return id >= 0 && !spec_->reserved.empty() && spec_->reserved[static_cast<size_t>(id)] ? -1 : id;
}

int32_t Vocabulary::scored_symbol(std::string_view part) {
  const int32_t id = find_unreserved(part);
  if (id >= 0 || part.size() != utf8_size(part[0])) return id;
  int32_t loose = character_index_.find(part);
  if (loose < 0) {
    loose = static_cast<int32_t>(characters_.size());
    characters_.push_back(part);
    character_index_.insert(static_cast<uint32_t>(loose));
  }
  return static_cast<int32_t>(spec_->tokens.size()) + loose;
}

void Vocabulary::insert_scored_merges() {
  const StringTable& tokens = spec_->tokens;
  std::vector<float> ranks;  // distinct scores, highest first
  for (const float score : spec_->scores) {
    if (std::isnan(score)) refuse_tokenizer("a score that is not a number");
  }
  ranks = spec_->scores;
  std::sort(ranks.begin(), ranks.end(), std::greater<>());
  ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());

  struct Pair {
    int32_t left, right, result;
    uint32_t score_rank, left_chars, right_chars;
  };
  std::vector<Pair> pairs;
  for (size_t id = 0; id < tokens.size(); ++id) {
    const std::string_view token = tokens[id];
    if (token.empty() || (!spec_->reserved.empty() && spec_->reserved[id])) continue;
    if (token.size() > kLongestScoredToken) {
      refuse_tokenizer(str("token ", id, " has ", token.size(), " bytes, at most ", kLongestScoredToken));
    }
    const auto rank = static_cast<uint32_t>(
        std::lower_bound(ranks.begin(), ranks.end(), spec_->scores[id], std::greater<>()) - ranks.begin());
    uint32_t n_chars = 0, left_chars = 0;
    for (size_t at = 0; at < token.size(); at += utf8_size(token[at])) ++n_chars;
    for (size_t cut = utf8_size(token[0]); cut < token.size(); cut += utf8_size(token[cut])) {
      ++left_chars;
      const int32_t left = scored_symbol(token.substr(0, cut));
      const int32_t right = left < 0 ? -1 : scored_symbol(token.substr(cut));
      if (right >= 0) pairs.push_back({left, right, static_cast<int32_t>(id), rank, left_chars, n_chars - left_chars});
    }
  }
  // Of equal scores the order in which transformers lists merges: so a GGUF, and the tokenizer.json that shard makes of
  // it, give the same ids, also in other people's hands.
  std::sort(pairs.begin(), pairs.end(), [](const Pair& a, const Pair& b) {
    return std::tie(a.score_rank, b.left_chars, b.right_chars, a.result, a.left, a.right) <
           std::tie(b.score_rank, a.left_chars, a.right_chars, b.result, b.left, b.right);
  });
  merges_ = MergeIndex(pairs.size());
  for (size_t rank = 0; rank < pairs.size(); ++rank) {
    const Pair& p = pairs[rank];
    merges_.insert(static_cast<uint32_t>(p.left), static_cast<uint32_t>(p.right),
                   {static_cast<uint32_t>(rank), p.result});
  }
}

int32_t Vocabulary::symbol_of(std::string_view character) const {
  if (character.size() == 1) return ascii_symbols_[static_cast<unsigned char>(character[0])];
  const int32_t id = find_unreserved(character);
  if (id >= 0 || characters_.empty()) return id;
  const int32_t loose = character_index_.find(character);
  return loose < 0 ? -1 : static_cast<int32_t>(spec_->tokens.size()) + loose;
}

namespace {

/// The bytes that a token's letters stand for; a token with another character in it is its own text, as tokenizers
/// reads it.
void append_byte_level(std::string_view token, std::string& out) {
  const size_t begin = out.size();
  for (size_t i = 0; i < token.size();) {
    size_t plain = i;  // '!' to '~' are their own letters: most tokens are nothing else
    while (plain < token.size() && token[plain] > ' ' && token[plain] < '\x7F') ++plain;
    out.append(token.substr(i, plain - i));
    i = plain;
    if (i == token.size()) break;
    const Utf8Char c = utf8_char(token.data() + i);
    i += c.size;
    const int byte = c.code < kByteAlphabet.byte_of.size() ? kByteAlphabet.byte_of[c.code] : -1;
    if (byte < 0) {
      out.resize(begin);
      out.append(token);
      return;
    }
    out.push_back(static_cast<char>(byte));
  }
}

void append_marked(std::string_view token, std::string& out) {
  constexpr std::string_view kMarkText = "\xE2\x96\x81";
  while (true) {
    const size_t at = token.find(kMarkText);
    out.append(token.substr(0, at));
    if (at == std::string_view::npos) return;
    out.push_back(' ');
    token.remove_prefix(at + kMarkText.size());
  }
}

}  // namespace

TokenBytes::TokenBytes(const TokenizerSpec& spec, size_t n, const std::function<std::string_view(size_t)>& written)
    : is_byte_(n) {
  begins_.reserve(n + 1);
  bytes_.reserve(spec.tokens.n_bytes());
  begins_.push_back(0);
  for (size_t id = 0; id < n; ++id) {
    const std::string_view token = written(id);
    if (spec.kind == TokenizerSpec::Kind::byte_level_bpe) {
      append_byte_level(token, bytes_);
    } else if (const int byte = byte_token_value(token); byte >= 0) {
      bytes_.push_back(static_cast<char>(byte));
      is_byte_[id] = true;
    } else {
      append_marked(token, bytes_);
    }
    if (bytes_.size() > UINT32_MAX) refuse_tokenizer("tokens of more than 4 GiB");
    begins_.push_back(static_cast<uint32_t>(bytes_.size()));
  }
}

}  // namespace firstlight

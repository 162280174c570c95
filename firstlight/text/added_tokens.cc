// SPDX-License-Identifier: Apache-2.0
#include "firstlight/text/added_tokens.h"

#include <algorithm>

#include "firstlight/text/unicode.h"

namespace firstlight {
namespace {

bool has_class(std::string_view text, size_t at, CharClass bit) {
  return (char_classes()[utf8_char(text.data() + at).code] & bit) != 0;
}

/// Where the character that ends at `end` begins.
size_t char_before(std::string_view text, size_t end) {
  do --end;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80);
  return end;
}

}  // namespace

int32_t AddedTokenMatcher::child(int32_t node, char byte) const {
  int32_t at = nodes_[static_cast<size_t>(node)].first_child;
  while (at >= 0 && nodes_[static_cast<size_t>(at)].byte != byte) at = nodes_[static_cast<size_t>(at)].next_sibling;
  return at;
}

bool AddedTokenMatcher::add(std::string_view pattern, int token) {
  int32_t node = -1;
  for (const char byte : pattern) {
    int32_t& root = roots_[static_cast<unsigned char>(byte)];
    int32_t next = node < 0 ? root : child(node, byte);
    if (next < 0) {
      next = static_cast<int32_t>(nodes_.size());
      Node fresh;
      fresh.byte = byte;
      if (node < 0) {
        root = next;
      } else {
        fresh.next_sibling = nodes_[static_cast<size_t>(node)].first_child;
        nodes_[static_cast<size_t>(node)].first_child = next;
      }
      nodes_.push_back(fresh);
    }
    node = next;
  }
  int32_t& stored = nodes_[static_cast<size_t>(node)].token;
  if (stored >= 0) return false;
  stored = token;
  return true;
}

size_t AddedTokenMatcher::longest(std::string_view text, int& token) const {
  size_t length = 0, i = 1;
  for (int32_t node = roots_[static_cast<unsigned char>(text[0])]; node >= 0; node = child(node, text[i++])) {
    if (nodes_[static_cast<size_t>(node)].token >= 0) {
      token = nodes_[static_cast<size_t>(node)].token;
      length = i;
    }
    if (i == text.size()) break;
  }
  return length;
}

std::vector<AddedTokenMatcher::Piece> AddedTokenMatcher::split(std::string_view text,
                                                               const std::vector<AddedToken>& added,
                                                               bool parse_special) const {
  std::vector<Piece> pieces;
  size_t done = 0;  // what is before stands in `pieces`
  for (size_t at = 0; at < text.size() && !nodes_.empty();) {
    int which = -1;
    const size_t length = roots_[static_cast<unsigned char>(text[at])] < 0 ? 0 : longest(text.substr(at), which);
    if (length == 0) {
      ++at;
      continue;
    }
    size_t begin = at, end = at + length;
    at = end;
    const AddedToken& token = added[static_cast<size_t>(which)];
    if (token.special && !parse_special) continue;
    if (token.single_word && ((begin > 0 && has_class(text, char_before(text, begin), kWord)) ||
                              (end < text.size() && has_class(text, end, kWord)))) {
      continue;
    }
    if (token.lstrip) {
      while (begin > done && has_class(text, char_before(text, begin), kStripped)) begin = char_before(text, begin);
      begin = std::max(begin, done);
    }
    if (token.rstrip) {
      while (end < text.size() && has_class(text, end, kStripped)) end += utf8_size(text[end]);
    }
    if (done < begin) pieces.push_back({done, begin, -1});
    pieces.push_back({begin, end, which});
    done = end;
  }
  if (done < text.size()) pieces.push_back({done, text.size(), -1});
  return pieces;
}

}  // namespace firstlight

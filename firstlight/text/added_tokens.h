// SPDX-License-Identifier: Apache-2.0
// Finds added tokens written out in a text: the leftmost, of those that begin there the longest, then on behind it.
#pragma once
#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "firstlight/text/tokenizer.h"

namespace firstlight {

class AddedTokenMatcher {
 public:
  AddedTokenMatcher() { roots_.fill(-1); }
  /// `pattern` is what stands in the text for spec.added[token]. False if it is there already. It must not be empty.
  bool add(std::string_view pattern, int token);
  bool empty() const { return nodes_.empty(); }

  struct Piece {
    size_t begin = 0, end = 0;
    int token = -1;  ///< index into `added`, or -1 for text between
  };
  /// Cuts the whole of `text`, as the Python package tokenizers does: lstrip and rstrip take the spaces beside a token,
  /// single_word passes over one inside a word, and without `parse_special` special ones are passed over. Of two tokens
  /// that both took the spaces between them, the second begins behind the first.
  std::vector<Piece> split(std::string_view text, const std::vector<AddedToken>& added, bool parse_special) const;

 private:
  struct Node {
    int32_t first_child = -1, next_sibling = -1;
    int32_t token = -1;
    char byte = 0;
  };
  int32_t child(int32_t node, char byte) const;
  /// Length of the longest pattern that begins at the front of `text`, and its token; 0 if there is none.
  size_t longest(std::string_view text, int& token) const;

  std::array<int32_t, 256> roots_;
  std::vector<Node> nodes_;
};

}  // namespace firstlight

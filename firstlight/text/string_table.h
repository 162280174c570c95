// SPDX-License-Identifier: Apache-2.0
// Many short strings in one block of bytes: a vocabulary of 150,000 tokens is two allocations.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "firstlight/base/error.h"

namespace firstlight {

class StringTable {
 public:
  size_t size() const { return spans_.size(); }
  bool empty() const { return spans_.empty(); }
  size_t n_bytes() const { return bytes_.size(); }
  /// Valid until the table changes.
  std::string_view operator[](size_t i) const { return {bytes_.data() + spans_[i].begin, spans_[i].size}; }

  void reserve(size_t n_strings, size_t n_bytes) {
    spans_.reserve(n_strings);
    bytes_.reserve(n_bytes);
  }
  void push_back(std::string_view text) {
    if (text.size() > UINT32_MAX - bytes_.size()) {
      throw Error(ErrorKind::bad_input, "a table of strings of more than 4 GiB");
    }
    spans_.push_back({static_cast<uint32_t>(bytes_.size()), static_cast<uint32_t>(text.size())});
    bytes_.append(text);
  }
  /// All strings at once, one behind the other in `bytes`. Throws Error{bad_input} unless the sizes sum up to it.
  void assign(const std::vector<uint32_t>& sizes, std::string_view bytes) {
    uint64_t at = 0;
    spans_.resize(sizes.size());
    for (size_t i = 0; i < sizes.size(); ++i) {
      spans_[i] = {static_cast<uint32_t>(at), sizes[i]};
      at += sizes[i];
      if (at > bytes.size()) break;
    }
    if (at != bytes.size() || at > UINT32_MAX) {
      throw Error(ErrorKind::bad_input, "a table of strings whose sizes do not sum up to its bytes");
    }
    bytes_ = bytes;
  }
  /// String i becomes the one at places[i]; places may hold -1 for "".
  void permute(const std::vector<int32_t>& places) {
    std::vector<Span> spans(places.size());
    for (size_t i = 0; i < places.size(); ++i) {
      if (places[i] >= 0) spans[i] = spans_[static_cast<size_t>(places[i])];
    }
    spans_ = std::move(spans);
  }

 private:
  struct Span {
    uint32_t begin = 0, size = 0;
  };
  std::string bytes_;
  std::vector<Span> spans_;
};

}  // namespace firstlight

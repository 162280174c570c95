// SPDX-License-Identifier: Apache-2.0
// A walk through JSON text without building anything: what a vocabulary's two long lists need (a general SAX parser
// takes 15 ms for 2 MB, this 3). Everything short is handed on as text for a general parser.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace firstlight {

/// All members throw Error{bad_input} "NAME: …, byte N" for text that is not JSON.
class JsonCursor {
 public:
  /// `text` must outlive the cursor; that it is UTF-8 is not checked. `name` is for messages.
  JsonCursor(std::string_view text, std::string name) : text_(text), name_(std::move(name)) {}

  /// Takes `c` if it comes next behind white space.
  bool take(char c);
  void expect(char c);
  /// The next character behind white space, which stays; '\0' at the end.
  char peek();
  /// A string; the result holds until the next call.
  std::string_view string();
  /// A whole number from 0 to 4294967295.
  uint32_t number();
  /// The text of the next value of any kind, brackets matched, otherwise unchecked; nested at most 64 deep.
  std::string_view value();
  /// Nothing but white space may follow.
  void end();
  [[noreturn]] void fail(const std::string& what) const;

 private:
  void skip_space();
  void skip_string();
  void escape();
  uint32_t hex4();

  std::string_view text_;
  std::string name_;
  size_t at_ = 0;
  std::string memory_;  // a string with escapes, unescaped
};

}  // namespace firstlight

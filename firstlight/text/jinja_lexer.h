// SPDX-License-Identifier: Apache-2.0
// Cuts a chat template into tokens as Jinja2 does with trim_blocks and lstrip_blocks on: white-space control is done
// here.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace firstlight::jinja {

enum class TokenKind { data, output_begin, output_end, block_begin, block_end, name, string, integer, real, op, end };

struct Token {
  TokenKind kind = TokenKind::end;
  int line = 1;
  std::string text;  ///< of data, name, op; a string's value; a number as written
  int64_t integer = 0;
  double real = 0;
};

/// Throws Error{bad_input} with the line for text that is no template. The last token is `end`.
std::vector<Token> tokenize(std::string_view source);

/// Error{bad_input} "chat template line 3: …".
[[noreturn]] void syntax_error(int line, std::string_view what);

}  // namespace firstlight::jinja

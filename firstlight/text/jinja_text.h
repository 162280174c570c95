// SPDX-License-Identifier: Apache-2.0
// Python's string operations on UTF-8, as far as chat templates use them: positions and lengths count code points,
// white space is Unicode's, case is Unicode's full mapping.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace firstlight::jinja {

/// The code point that begins at `at`, which moves behind it. The text must be valid UTF-8.
char32_t next_char(std::string_view text, size_t& at) noexcept;
void append_char(std::string& out, char32_t c);
/// Invalid bytes become U+FFFD.
std::string valid_utf8(std::string_view bytes);
bool is_valid_utf8(std::string_view bytes) noexcept;
/// str.isspace() of one character; also what \s matches.
bool is_space(char32_t c) noexcept;
int64_t count_chars(std::string_view text) noexcept;
/// Byte offset of the n-th code point (n from 0 to count_chars).
size_t offset_of_char(std::string_view text, int64_t n) noexcept;
bool is_ascii(std::string_view text) noexcept;

/// str.strip and its one-sided forms; without `chars`: white space.
std::string_view strip(std::string_view text, std::optional<std::string_view> chars, bool left, bool right);
/// str.split(): at runs of white space, without empty pieces; at most max_splits (-1: all) from the left or from the
/// right.
std::vector<std::string_view> split_space(std::string_view text, int64_t max_splits, bool from_right);
/// str.split(separator): the separator is not empty.
std::vector<std::string_view> split_at(std::string_view text, std::string_view separator, int64_t max_splits,
                                       bool from_right);
std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends);
/// str.replace: an empty `from` matches between all characters; at most max_count (-1: all).
std::string replace_all(std::string_view text, std::string_view from, std::string_view to, int64_t max_count);

/// Full case mapping. to_lower of a text with the Greek capital sigma is null: its mapping depends on its neighbours.
std::string to_upper(std::string_view text);
std::optional<std::string> to_lower(std::string_view text);
/// str.capitalize: first character in title case, the others in lower case; null as to_lower.
std::optional<std::string> capitalize(std::string_view text);
/// The filter `title`: each word's first character in upper case; words end at white space and at - ( { [ <.
std::optional<std::string> title_words(std::string_view text);

/// repr() of a str: quotes and escapes as Python writes them.
std::string python_repr(std::string_view text);
/// repr() of a float: the shortest digits that read back, exponent below 1e-4 and from 1e16.
std::string python_repr(double value);
/// A JSON string with its quotes, as json.dumps(ensure_ascii=False) writes it.
std::string json_string(std::string_view text);
std::string json_ascii_string(std::string_view text);

}  // namespace firstlight::jinja

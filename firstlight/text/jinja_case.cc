// SPDX-License-Identifier: Apache-2.0
// Upper, lower and title case by Unicode's full mappings.
#include <algorithm>
#include <array>
#include <iterator>

#include "firstlight/text/jinja_text.h"

namespace firstlight::jinja {
namespace {

struct CaseRun {
  char32_t first, last;
  int step, shift;
};
struct CaseExpansion {
  char32_t from;
  std::array<char32_t, 3> to;
};
#include "firstlight/text/case_map.inc"

template <size_t n_runs, size_t n_expansions>
void append_mapped(std::string& out, char32_t c, const CaseRun (&runs)[n_runs],
                   const CaseExpansion (&expansions)[n_expansions]) {
  const auto run = std::lower_bound(std::begin(runs), std::end(runs), c,
                                    [](const CaseRun& each, char32_t value) { return each.last < value; });
  if (run != std::end(runs) && c >= run->first && (c - run->first) % static_cast<char32_t>(run->step) == 0) {
    return append_char(out, c + static_cast<char32_t>(run->shift));
  }
  const auto expansion = std::lower_bound(std::begin(expansions), std::end(expansions), c,
                                          [](const CaseExpansion& each, char32_t value) { return each.from < value; });
  if (expansion == std::end(expansions) || expansion->from != c) return append_char(out, c);
  for (const char32_t part : expansion->to) {
    if (part != 0) append_char(out, part);
  }
}

constexpr char32_t kCapitalSigma = 0x3a3;

bool append_lower(std::string& out, char32_t c) {
  if (c == kCapitalSigma) return false;
  append_mapped(out, c, kLowerRuns, kLowerExpansions);
  return true;
}

}  // namespace

std::string to_upper(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) append_mapped(out, next_char(text, at), kUpperRuns, kUpperExpansions);
  return out;
}

std::optional<std::string> to_lower(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    if (!append_lower(out, next_char(text, at))) return std::nullopt;
  }
  return out;
}

std::optional<std::string> capitalize(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const bool first = at == 0;
    const char32_t c = next_char(text, at);
    if (first)
      append_mapped(out, c, kTitleRuns, kTitleExpansions);
    else if (!append_lower(out, c))
      return std::nullopt;
  }
  return out;
}

std::optional<std::string> title_words(std::string_view text) {
  std::string out;
  bool first = true;
  for (size_t at = 0; at < text.size();) {
    const char32_t c = next_char(text, at);
    const bool separates = is_space(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<';
    if (separates)
      append_char(out, c);
    else if (first)
      append_mapped(out, c, kUpperRuns, kUpperExpansions);
    else if (!append_lower(out, c))
      return std::nullopt;
    first = separates;
  }
  return out;
}

}  // namespace firstlight::jinja

// SPDX-License-Identifier: Apache-2.0
#include "firstlight/cli/arguments.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <string_view>
#include <utility>

#include "firstlight/base/str.h"

namespace firstlight::cli {

namespace {

/// The whole of `text` as a number, without a sign of plus and without spaces.
template <class Number>
bool parse_number(const std::string& text, Number& value) {
  const char* end = text.data() + text.size();
  const auto [stopped, error] = std::from_chars(text.data(), end, value);
  return error == std::errc() && stopped == end;
}

/// "'a', 'b'".
std::string quoted(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += str(text.empty() ? "'" : ", '", word, "'");
  return text;
}

/// "firstlight bench start": as far as the command was understood.
std::string command_of(const CLI::App& app) {
  const auto given = app.get_subcommands();
  return given.empty() ? app.get_name() : str(app.get_name(), " ", command_of(*given[0]));
}

/// Whether a value without the option's name in front is its value, too: "run OUT a -p b".
bool also_positional(const CLI::App& app, const std::string& name) {
  const CLI::App* command = &app;
  while (!command->get_subcommands().empty()) command = command->get_subcommands()[0];
  const CLI::Option* option = command->get_option_no_throw(name);
  return option != nullptr && option->get_positional() && option->nonpositional();
}

/// CLI11 tells of these in its text alone: "--tp: At Most 1 required but received 2", "--tp: 1 required INT missing",
/// "Expected exactly 1 arguments to --tp, got 0".
std::string words_of_mismatch(const CLI::App& app, const std::string& what) {
  const auto has = [&](std::string_view text) { return what.find(text) != what.npos; };
  const std::string name = what.substr(0, what.find_first_of(": "));
  if (has("At Most"))
    return str(name, " is given ", what.substr(what.rfind(' ') + 1), " times",
               also_positional(app, name) ? " (a value without it in front counts, too)" : "", ", it takes one value");
  if (has("missing")) return str(name, " needs a value behind it");
  if (has("flag override")) return str(name, " takes no value");
  return what;
}

}  // namespace

CLI::Validator whole_number(int64_t least, int64_t most) {
  const bool open = most >= int64_t{1} << 30;
  const std::string range = open ? str("from ", least, " on") : str("from ", least, " to ", most);
  return {[=](const std::string& text) {
            int64_t value = 0;
            const bool good = parse_number(text, value) && value >= least && value <= most;
            return good ? std::string() : str("'", text, "' is not a whole number ", range);
          },
          range};
}

CLI::Validator number(double least, double most) {
  const std::string range = str("from ", least, " to ", most);
  return {[=](const std::string& text) {
            double value = 0;
            const bool good = parse_number(text, value) && value >= least && value <= most;
            return good ? std::string() : str("'", text, "' is not a number ", range);
          },
          range};
}

CLI::Validator not_empty() {
  return {[](const std::string& text) { return text.empty() ? std::string("'' names nothing") : std::string(); }, ""};
}

CLI::Validator seed_number() {
  return {[](const std::string& text) {
            const bool good = !text.empty() && text.size() <= 19 && text.find_first_not_of("0123456789") == text.npos;
            return good ? std::string() : str("'", text, "' is no seed: a whole number of up to 19 digits");
          },
          "up to 19 digits"};
}

CLI::Validator one_of(std::vector<std::string> names) {
  std::string list;
  for (const std::string& name : names) list += str(list.empty() ? "" : ", ", name);
  return {[names = std::move(names), list](const std::string& text) {
            const bool known = std::find(names.begin(), names.end(), text) != names.end();
            return known ? std::string() : str("'", text, "' is none of ", list);
          },
          list};
}

std::string plain_words(const CLI::App& app, const CLI::ParseError& error) {
  const std::string what = error.what();
  const auto between = [&](std::string_view word) {  // "A word B" → A, B
    const size_t at = what.find(word);
    return std::pair(what.substr(0, at), at == what.npos ? "" : what.substr(at + word.size()));
  };
  const std::vector<std::string> left = app.remaining(true);
  const std::string unknown = str(command_of(app), " does not know what to do with ", quoted(left));
  switch (static_cast<CLI::ExitCodes>(error.get_exit_code())) {
    case CLI::ExitCodes::ExtrasError:
      return unknown;
    case CLI::ExitCodes::ArgumentMismatch:
      return words_of_mismatch(app, what);
    case CLI::ExitCodes::RequiredError: {
      const std::string name = between(" is required").first;
      if (name != "A subcommand") return str(name, " is missing");
      return left.empty() ? "a command is missing" : unknown;
    }
    case CLI::ExitCodes::ExcludesError: {
      const auto [one, other] = between(" excludes ");
      return str(one, " and ", other, " are given: one of them is enough");
    }
    case CLI::ExitCodes::ConversionError: {  // a flag's value, and a number that no validator stands before
      const auto [text, value] = between(" = ");
      const std::string name = text.substr(text.find_last_of(' ') + 1);
      return value.empty() ? what : str(name, ": '", value, "' is not what it takes");
    }
    default:
      return what;
  }
}

}  // namespace firstlight::cli

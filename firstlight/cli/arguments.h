// SPDX-License-Identifier: Apache-2.0
// The words of the command line: what an option takes, and what is wrong with what was given.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace CLI {
class App;
class ParseError;
class Validator;
}  // namespace CLI

namespace firstlight::cli {

/// For ->check(…): "'x' is not a whole number from 1 to 1024".
CLI::Validator whole_number(int64_t least, int64_t most);
/// "'x' is not a number from 0 to 100".
CLI::Validator number(double least, double most);
/// Any text but the empty one, which an unset variable gives.
CLI::Validator not_empty();
/// What an unsigned 64-bit option holds for certain: a whole number of up to 19 digits.
CLI::Validator seed_number();
/// "'x' is none of auto, pread, io_uring".
CLI::Validator one_of(std::vector<std::string> names);

/// What is wrong with a command line that `app` did not take, in one line.
std::string plain_words(const CLI::App& app, const CLI::ParseError& error);

}  // namespace firstlight::cli

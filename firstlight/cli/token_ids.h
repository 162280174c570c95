// SPDX-License-Identifier: Apache-2.0
// What a command reads beside its model.
#pragma once
#include <string>
#include <vector>

namespace firstlight::cli {

/// All of standard input (cli/standard_input.h); a signal ends the program at once meanwhile.
std::string read_standard_input();

/// A JSON list of token ids in a file; "-": on standard input. Throws Error{bad_input} naming the first that the model
/// does not have.
std::vector<int> read_ids(const std::string& path, int vocab_size);

}  // namespace firstlight::cli

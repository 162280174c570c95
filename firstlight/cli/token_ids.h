// SPDX-License-Identifier: Apache-2.0
// What a command reads beside its model.
#pragma once
#include <string>
#include <vector>

namespace firstlight::cli {

/// All of standard input. Throws Error{bad_input} for more than 1 GiB: an endless input must not take the machine's
/// memory.
std::string read_standard_input();

/// A JSON list of token ids. Throws Error{bad_input} naming the first that the model does not have.
std::vector<int> read_ids(const std::string& path, int vocab_size);

}  // namespace firstlight::cli

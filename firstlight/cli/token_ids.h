// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>
#include <vector>

namespace firstlight::cli {

/// A JSON list of token ids. Throws Error{bad_input} naming the first that the model does not have.
std::vector<int> read_ids(const std::string& path, int vocab_size);

}  // namespace firstlight::cli

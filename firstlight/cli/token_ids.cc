// SPDX-License-Identifier: Apache-2.0
#include "firstlight/cli/token_ids.h"

#include <nlohmann/json.hpp>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/cli/interrupt.h"
#include "firstlight/cli/standard_input.h"
#include "firstlight/io/file.h"

namespace firstlight::cli {

std::string read_standard_input() {
  exit_at_once(true);
  std::string text = StandardInput().read_all();
  exit_at_once(false);
  return text;
}

std::vector<int> read_ids(const std::string& path, int vocab_size) {
  const bool piped = path == "-";
  const std::string name = piped ? "standard input" : path;
  const nlohmann::json json = nlohmann::json::parse(piped ? read_standard_input() : read_text(path), nullptr, false);
  if (!json.is_array()) throw Error(ErrorKind::bad_input, str(name, ": not a JSON list of token ids"));
  std::vector<int> ids;
  for (const auto& value : json) {
    if (!value.is_number_integer() || value < 0 || value >= vocab_size) {
      throw Error(ErrorKind::bad_input,
                  str(name, ": ", value.dump(), " is not a token id of this model (0 … ", vocab_size - 1, ")"));
    }
    ids.push_back(value.get<int>());
  }
  return ids;
}

}  // namespace firstlight::cli

// SPDX-License-Identifier: Apache-2.0
#include "firstlight/cli/token_ids.h"

#include <iostream>
#include <nlohmann/json.hpp>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/io/file.h"

namespace firstlight::cli {

std::string read_standard_input() {
  constexpr size_t kLargestInput = 1u << 30;
  std::string text;
  std::vector<char> piece(1u << 20);
  while (std::cin.read(piece.data(), static_cast<std::streamsize>(piece.size())) || std::cin.gcount() > 0) {
    text.append(piece.data(), static_cast<size_t>(std::cin.gcount()));
    if (text.size() > kLargestInput)
      throw Error(ErrorKind::bad_input, str("standard input has more than ", kLargestInput, " bytes"));
  }
  return text;
}

std::vector<int> read_ids(const std::string& path, int vocab_size) {
  const nlohmann::json json = nlohmann::json::parse(read_text(path), nullptr, false);
  if (!json.is_array()) throw Error(ErrorKind::bad_input, str(path, ": not a JSON list of token ids"));
  std::vector<int> ids;
  for (const auto& value : json) {
    if (!value.is_number_integer() || value < 0 || value >= vocab_size) {
      throw Error(ErrorKind::bad_input,
                  str(path, ": ", value.dump(), " is not a token id of this model (0 … ", vocab_size - 1, ")"));
    }
    ids.push_back(value.get<int>());
  }
  return ids;
}

}  // namespace firstlight::cli

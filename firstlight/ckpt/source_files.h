// SPDX-License-Identifier: Apache-2.0
// The safetensors files of a Hugging Face directory: one model.safetensors, or those that its index names.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "firstlight/ckpt/safetensors.h"
#include "firstlight/io/file.h"

namespace firstlight {

struct SafetensorsFile {
  std::string name;  ///< within the directory
  std::shared_ptr<const File> file;
  SafetensorsHeader header;
};

struct SafetensorsFiles {
  std::vector<SafetensorsFile> files;  ///< by name
  struct Place {
    uint32_t file = 0, tensor = 0;  ///< files[file].header.tensors[tensor]
  };
  std::unordered_map<std::string, Place> places;  ///< by tensor name
};

/// model.safetensors.index.json's weight_map: tensor name → file name. Throws Error{bad_input} for syntax, duplicate
/// tensors and file names that are not plain ("..", "/").
std::unordered_map<std::string, std::string> parse_safetensors_index(std::string_view json, std::string_view path);

/// Opens them all and reads their headers. Files may be symbolic links (the hub's cache is made of them). Throws
/// Error{not_found} naming a file that is missing, Error{bad_input} for a tensor that the index lists and its file
/// lacks and for one in two files.
SafetensorsFiles open_safetensors_directory(const fs::path& directory);

}  // namespace firstlight

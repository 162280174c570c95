// SPDX-License-Identifier: Apache-2.0
// What firstlight inspect shows: the tensors of a file or a directory as they are stored.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <stop_token>
#include <string>
#include <vector>

#include "firstlight/io/file.h"

namespace firstlight::cli {

struct InspectedTensor {
  std::string name;            ///< as stored; in a rank checkpoint with its place: "tp2/rank-00/model.norm.weight"
  std::string dtype;           ///< as stored: "BF16", "Q4_1"
  std::vector<int64_t> shape;  ///< row-major, outermost first (a GGUF's reversed)
  std::shared_ptr<const File> file;
  uint64_t offset = 0, size_bytes = 0;
};

struct Inspected {
  std::string kind;  ///< "safetensors", "Hugging Face directory", "GGUF v3", "rank checkpoint"
  std::vector<InspectedTensor> tensors;
  std::vector<std::pair<std::string, std::string>> metadata;  ///< key, short text of the value
};

Inspected inspect_safetensors_file(const fs::path& path);
Inspected inspect_gguf(const fs::path& path);
/// Any PATH. Of a rank checkpoint the headers are compared with the manifest, and the parts as a whole if their data is
/// wanted (`with_data`): Error{damaged}.
Inspected inspect(const fs::path& path, bool with_data, const std::stop_token& stop);

}  // namespace firstlight::cli

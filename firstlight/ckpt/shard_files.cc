// SPDX-License-Identifier: Apache-2.0
#include "firstlight/ckpt/shard_files.h"

#include <nlohmann/json.hpp>

#include "firstlight/base/error.h"
#include "firstlight/base/hash.h"
#include "firstlight/base/str.h"
#include "firstlight/ckpt/journal.h"

namespace firstlight {

namespace {

constexpr const char* kIndexName = "model.safetensors.index.json";

bool is_reserved(const std::string& name) {
  return name.empty() || name[0] == '.' || name.find('/') != std::string::npos || name == "READY" ||
         name == "manifest.json" || name == "journal.jsonl" || name.ends_with(".partial") ||
         name.ends_with(".safetensors");
}

}  // namespace

DType main_dtype(const std::vector<StoredTensor>& tensors) {
  uint64_t f32 = 0, bf16 = 0;
  for (const StoredTensor& tensor : tensors) {
    (tensor.dtype == DType::f32 ? f32 : bf16) += tensor.row_bytes() * static_cast<uint64_t>(tensor.n_rows());
  }
  return f32 > bf16 ? DType::f32 : DType::bf16;
}

std::string config_with_dtype(const std::string& config_json, DType dtype) {
  nlohmann::ordered_json config;
  try {
    config = nlohmann::ordered_json::parse(config_json);
  } catch (const nlohmann::json::exception& e) {
    throw Error(ErrorKind::bad_input, str("config.json is not JSON: ", e.what()));
  }
  if (!config.is_object()) throw Error(ErrorKind::bad_input, "config.json is not a JSON object");
  const std::string want = dtype == DType::f32 ? "float32" : "bfloat16";
  bool known = false, changed = false;
  for (const char* key : {"torch_dtype", "dtype"}) {
    const auto found = config.find(key);
    if (found == config.end()) continue;
    known = true;
    if (*found == want) continue;
    *found = want;
    changed = true;
  }
  if (!known) config["torch_dtype"] = want;
  return known && !changed ? config_json : config.dump(2) + "\n";
}

std::map<std::string, std::string> top_files(const Source& source, DType dtype) {
  std::map<std::string, std::string> files;
  for (const AuxFile& file : source.aux_files()) {
    if (file.name == kIndexName) continue;  // of the source's parts, which are not here
    if (is_reserved(file.name)) {
      throw Error(ErrorKind::bad_input, str("'", source.path(), "': a file named '", file.name, "' cannot be copied"));
    }
    files[file.name] = file.name == "config.json" ? config_with_dtype(file.content, dtype) : file.content;
  }
  if (!files.contains("config.json")) {
    throw Error(ErrorKind::bad_input, str("'", source.path(), "' has no config.json"));
  }
  return files;
}

std::map<std::string, std::string> rank_files(const std::map<std::string, std::string>& top, const RankLayout& layout,
                                              const std::vector<StoredTensor>& tensors, int rank,
                                              const std::vector<const PartDigest*>& digests) {
  const std::string directory = rank_directory(layout.tp, rank) + "/";
  std::map<std::string, std::string> files;
  for (const char* name : {"config.json", "generation_config.json"}) {
    if (const auto found = top.find(name); found != top.end()) files[directory + name] = found->second;
  }
  nlohmann::json weight_map = nlohmann::json::object();
  for (const PartLayout& part : layout.parts) {
    for (const PlacedTensor& placed : part.placed) weight_map[tensors[placed.index].model.name] = part.name;
  }
  nlohmann::ordered_json index;
  index["metadata"]["total_size"] = layout.total_bytes();
  index["weight_map"] = weight_map;
  files[directory + kIndexName] = index.dump(2) + "\n";
  std::string& leaves = files[directory + "leaves.xxh3"];
  for (const PartDigest* digest : digests) leaves += leaf_bytes(digest->leaves);
  return files;
}

ManifestTp manifest_tp(const ModelConfig& config, const RankLayout& layout, const std::vector<StoredTensor>& tensors) {
  ManifestTp tp;
  tp.tp = layout.tp;
  std::vector<std::string> headers;  // without padding; the same in all ranks
  for (const PartLayout& part : layout.parts) {
    std::string header = part_header(config, tensors, layout.tp, part);
    header.resize(header.find_last_of('}') + 1);
    headers.push_back(std::move(header));
  }
  for (int rank = 0; rank < layout.tp; ++rank) {
    ManifestRank one;
    one.directory = rank_directory(layout.tp, rank);
    for (size_t i = 0; i < layout.parts.size(); ++i) {
      const PartLayout& part = layout.parts[i];
      one.parts.push_back({one.directory + "/" + part.name, part.data_bytes, part.tail_begin, part.first_leaf,
                           headers[i].size(), xxh3_128_hex(std::as_bytes(std::span(headers[i])))});
    }
    tp.ranks.push_back(std::move(one));
  }
  return tp;
}

std::vector<ManifestTensor> manifest_tensors(const std::vector<StoredTensor>& tensors) {
  std::vector<ManifestTensor> out;
  for (const StoredTensor& tensor : tensors) {
    out.push_back({tensor.model.name, tensor.model.shape, tensor.dtype, tensor.model.slice});
  }
  return out;
}

}  // namespace firstlight

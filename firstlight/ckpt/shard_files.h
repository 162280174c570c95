// SPDX-License-Identifier: Apache-2.0
// The small files of a rank checkpoint: configs, indexes, leaves, manifest.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "firstlight/ckpt/manifest.h"
#include "firstlight/ckpt/shard_layout.h"
#include "firstlight/ckpt/shard_pipeline.h"

namespace firstlight {

/// The type that most bytes are stored in: what config.json says.
DType main_dtype(const std::vector<StoredTensor>& tensors);
/// config.json's text with torch_dtype / dtype set to `dtype`; unchanged, to the byte, if it says so already.
std::string config_with_dtype(const std::string& config_json, DType dtype);

/// The source's small files as OUT has them, by name. Throws Error{bad_input} if there is no config.json or a name is
/// not a plain one.
std::map<std::string, std::string> top_files(const Source& source, DType dtype);

/// config.json, generation_config.json if there is one, index and leaves of a rank, by name relative to OUT.
/// `digests`: of the rank's parts, in order.
std::map<std::string, std::string> rank_files(const std::map<std::string, std::string>& top, const RankLayout& layout,
                                              const std::vector<StoredTensor>& tensors, int rank,
                                              const std::vector<const PartDigest*>& digests);

ManifestTp manifest_tp(const ModelConfig& config, const RankLayout& layout, const std::vector<StoredTensor>& tensors);
std::vector<ManifestTensor> manifest_tensors(const std::vector<StoredTensor>& tensors);

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// A small file of what a model's keys and values are on average, over calibration text: a cache of codes subtracts it
// before it rounds. Safetensors, with the model's identity in the metadata (docs/turboquant.md).
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "firstlight/ckpt/model_config.h"
#include "firstlight/io/file.h"

namespace firstlight {

/// Means over tokens, of keys as attention meets them (normalised and rotated) and of values; heads count over the
/// whole model.
struct KvMeans {
  int n_layers = 0, n_kv_heads = 0, head_dim = 0;
  std::vector<float> values;  ///< [n_layers][k, v][n_kv_heads][head_dim], all finite
  /// XXH3-64 of the values' bytes, which turboquant::Format calls centring, as 16 hex digits.
  std::string hash() const;
};

struct KvCalibration {
  KvMeans means;
  std::string model;     ///< Source::fingerprint(), which a rank checkpoint's manifest has, too
  int64_t n_tokens = 0;  ///< that the means are of
};

/// Larger means than this are refused: no key of a working model is near it, and codes hold norms up to 9e4.
inline constexpr float kLargestMean = 1e5f;

/// The file's bytes.
std::string to_file(const KvCalibration& calibration);
/// Parses a file as if its author were hostile. Throws Error{bad_input} naming `path` and what is wrong,
/// Error{unsupported} for another version, Error{damaged} if the means are not those that were hashed.
KvCalibration parse_kv_calibration(std::string_view file, std::string_view path);
/// Reads a file of at most what this model's means take. Throws as above, and Error{bad_input} if it was made for
/// another model than the one with this fingerprint.
KvCalibration read_kv_calibration(const fs::path& path, const ModelConfig& config, std::string_view fingerprint);

}  // namespace firstlight

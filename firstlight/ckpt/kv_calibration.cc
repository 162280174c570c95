// SPDX-License-Identifier: Apache-2.0
#include "firstlight/ckpt/kv_calibration.h"

#include <bit>
#include <charconv>
#include <cmath>
#include <cstring>

#include "firstlight/base/error.h"
#include "firstlight/base/hash.h"
#include "firstlight/base/str.h"
#include "firstlight/ckpt/safetensors.h"

namespace firstlight {
namespace {

constexpr std::string_view kTensor = "kv_means", kVersionKey = "firstlight_kv_calibration", kVersion = "1";
constexpr uint64_t kLengthBytes = 8, kMostMeansHeader = 4096;  // the header has one tensor and four words

[[noreturn]] void throw_no_calibration(std::string_view path, const std::string& what) {
  throw Error(ErrorKind::bad_input, str("'", path, "' is no calibration of keys and values: ", what));
}

const std::string& metadata_word(const SafetensorsHeader& header, std::string_view key, std::string_view path) {
  const auto found = header.metadata.find(std::string(key));
  if (found == header.metadata.end()) throw_no_calibration(path, str("its metadata has no \"", key, "\""));
  return found->second;
}

SafetensorsHeader read_means_header(std::string_view file, std::string_view path) {
  uint64_t n = 0;
  if (file.size() < kLengthBytes) throw_no_calibration(path, str("it has ", file.size(), " bytes"));
  for (uint64_t i = 0; i < kLengthBytes; ++i) n |= uint64_t{static_cast<uint8_t>(file[i])} << (8 * i);
  if (n > kMostMeansHeader || n > file.size() - kLengthBytes)
    throw_no_calibration(path, str("its header would have ", n, " bytes; the file has ", file.size(),
                                   ", and a header at most ", kMostMeansHeader));
  return parse_safetensors_header(file.substr(kLengthBytes, n), file.size() - kLengthBytes - n, path);
}

KvMeans means_shape(const SafetensorsHeader& header, std::string_view path) {
  constexpr int64_t kMost = 1 << 20;  // of layers, heads or coordinates
  if (header.tensors.size() != 1 || header.tensors[0].name != kTensor)
    throw_no_calibration(path, str("expected one tensor, \"", kTensor, "\""));
  const SafetensorsTensor& tensor = header.tensors[0];
  bool good = tensor.dtype == DType::f32 && tensor.shape.size() == 4 && tensor.shape[1] == 2;
  for (const int64_t n : tensor.shape) good = good && n >= 1 && n <= kMost;
  if (!good) throw_no_calibration(path, str("\"", kTensor, "\" is not F32 [layers, 2, heads, coordinates]"));
  return {static_cast<int>(tensor.shape[0]), static_cast<int>(tensor.shape[2]), static_cast<int>(tensor.shape[3]), {}};
}

}  // namespace

std::string KvMeans::hash() const {
  const uint64_t x = xxh3_64(std::as_bytes(std::span(values)));
  std::string digits;
  for (int shift = 60; shift >= 0; shift -= 4) digits += "0123456789abcdef"[x >> shift & 15];
  return digits;
}

std::string to_file(const KvCalibration& calibration) {
  static_assert(std::endian::native == std::endian::little);
  const KvMeans& means = calibration.means;
  const std::string_view data(reinterpret_cast<const char*>(means.values.data()), means.values.size() * sizeof(float));
  const SafetensorsTensor tensor{
      std::string(kTensor), DType::f32, {means.n_layers, 2, means.n_kv_heads, means.head_dim}, 0, data.size()};
  return make_safetensors_header({tensor},
                                 {{std::string(kVersionKey), std::string(kVersion)},
                                  {"model", calibration.model},
                                  {"n_tokens", str(calibration.n_tokens)},
                                  {"xxh3", means.hash()}},
                                 0) +
         std::string(data);
}

KvCalibration parse_kv_calibration(std::string_view file, std::string_view path) {
  const SafetensorsHeader header = read_means_header(file, path);
  const std::string& version = metadata_word(header, kVersionKey, path);
  if (version != kVersion)
    throw Error(ErrorKind::unsupported,
                str("'", path, "': version ", version, " of a calibration, expected ", kVersion));
  KvCalibration calibration{means_shape(header, path), metadata_word(header, "model", path), 0};
  const std::string& tokens = metadata_word(header, "n_tokens", path);
  const char* end = tokens.data() + tokens.size();
  const auto parsed = std::from_chars(tokens.data(), end, calibration.n_tokens);
  if (parsed.ec != std::errc() || parsed.ptr != end || calibration.n_tokens < 1)
    throw_no_calibration(path, str("n_tokens is '", tokens, "'"));
  std::vector<float>& values = calibration.means.values;
  const SafetensorsTensor& tensor = header.tensors[0];  // its end is the file's: the header's parser has checked
  values.resize((tensor.end - tensor.begin) / sizeof(float));
  std::memcpy(values.data(), file.data() + file.size() - (tensor.end - tensor.begin), tensor.end - tensor.begin);
  if (calibration.means.hash() != metadata_word(header, "xxh3", path))
    throw Error(ErrorKind::damaged, str("'", path, "': its means have another hash than its metadata says"));
  for (size_t i = 0; i < values.size(); ++i) {
    if (!(std::abs(values[i]) <= kLargestMean)) throw_no_calibration(path, str("mean ", i, " is ", values[i]));
  }
  return calibration;
}

KvCalibration read_kv_calibration(const fs::path& path, const ModelConfig& config, std::string_view fingerprint) {
  const uint64_t data_bytes = static_cast<uint64_t>(config.n_layers) * 2 * static_cast<uint64_t>(config.n_kv_heads) *
                              static_cast<uint64_t>(config.head_dim) * sizeof(float);
  KvCalibration calibration =
      parse_kv_calibration(read_text(path, kLengthBytes + kMostMeansHeader + data_bytes), path.string());
  const KvMeans& means = calibration.means;
  if (calibration.model != fingerprint || means.n_layers != config.n_layers || means.n_kv_heads != config.n_kv_heads ||
      means.head_dim != config.head_dim) {
    throw Error(ErrorKind::bad_input,
                str("'", path.string(), "' was made for another model: for ", calibration.model, " (", means.n_layers,
                    " layers, ", means.n_kv_heads, " key/value heads of ", means.head_dim, "), this is ", fingerprint,
                    " (", config.n_layers, ", ", config.n_kv_heads, " of ", config.head_dim, ")"));
  }
  return calibration;
}

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
#include "firstlight/ckpt/synth_source.h"

#include <nlohmann/json.hpp>

#include "firstlight/base/error.h"
#include "firstlight/base/hash.h"
#include "firstlight/base/str.h"
#include "firstlight/ckpt/slice_map.h"
#include "firstlight/ckpt/synth_models.h"
#include "firstlight/ckpt/synth_values.h"

namespace firstlight {

namespace {

class SynthSource final : public Source {
 public:
  SynthSource(const std::string& config_json, DType dtype, uint64_t seed)
      : config_(parse_hf_config(config_json)), seed_(seed), aux_{{"config.json", config_json}} {
    fingerprint_ = str("synth:", xxh3_128_hex(std::as_bytes(std::span(config_json))), ":", to_string(dtype), ":", seed);
    for (const ModelTensor& tensor : model_tensors(config_)) {
      const bool matrix = tensor.shape.size() == 2 && tensor.name.find(".layers.") != std::string::npos;
      const DType type = matrix ? dtype : DType::bf16;
      uint64_t bytes = size_of(type);
      for (const int64_t n : tensor.shape) bytes *= static_cast<uint64_t>(n);
      tensors_.push_back(
          {tensor.name, tensor.shape, std::string(safetensors_name(type)), type, false, bytes, type == DType::f8_e4m3});
    }
  }
  const std::string& path() const override { return fingerprint_; }
  std::string_view kind() const override { return "synth"; }
  const ModelConfig& config() const override { return config_; }
  const std::vector<SourceTensor>& tensors() const override { return tensors_; }
  const std::vector<AuxFile>& aux_files() const override { return aux_; }
  std::string fingerprint() const override { return fingerprint_; }

  void read_rows(const SourceTensor& tensor, int64_t row_begin, int64_t row_end, DType as,
                 std::span<std::byte> out) const override {
    if (as != tensor.dtype) throw Error(ErrorKind::unsupported, "synthetic weights are not converted");
    const auto index = static_cast<uint64_t>(&tensor - tensors_.data());
    const auto columns = static_cast<uint64_t>(tensor.shape.back());  // a tensor of one dimension is one row
    const uint64_t begin = static_cast<uint64_t>(row_begin) * columns, n = out.size() / size_of(as);
    if (n != static_cast<uint64_t>(row_end - row_begin) * columns) throw Error(ErrorKind::bug, "rows of another size");
    fill_synth(tensor.name, as, synth_stream(seed_, index), begin, n, out.data());
  }

 private:
  ModelConfig config_;
  uint64_t seed_ = 0;
  std::vector<AuxFile> aux_;
  std::vector<SourceTensor> tensors_;
  std::string fingerprint_;
};

}  // namespace

std::string synth_config(const SynthOptions& options) {
  std::string text = options.config_json.empty() ? synth_config(options.like) : options.config_json;
  if (options.n_layers > 0) {
    parse_hf_config(text);  // has the words for what is no config
    auto config = nlohmann::ordered_json::parse(text);
    config["num_hidden_layers"] = options.n_layers;
    text = config.dump(2) + "\n";
  }
  const DType dtype = parse_hf_config(text).dtype;
  if (dtype != DType::bf16) {
    throw Error(ErrorKind::unsupported, str("synth writes bf16, the config says ", to_string(dtype)));
  }
  return text;
}

std::unique_ptr<Source> synth_source(const SynthOptions& options) {
  return std::make_unique<SynthSource>(synth_config(options), options.dtype, options.seed);
}

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// A GGUF (one file or split) as a Source: Hugging Face names, Hugging Face row order, JSON files made from the
// metadata.
#pragma once
#include <memory>
#include <mutex>
#include <unordered_map>

#include "firstlight/ckpt/gguf.h"
#include "firstlight/ckpt/source.h"

namespace firstlight {

class GgufSource final : public Source {
 public:
  /// Throws what Gguf::open and gguf_model_config throw, Error{not_found} for a tensor that is missing,
  /// Error{bad_input} for a shape that the metadata does not give, Error{unsupported} for a tensor that the
  /// architecture does not have or a type that is not decoded.
  explicit GgufSource(const fs::path& path);

  /// The file itself; tokenizers are filled from its metadata.
  const Gguf& gguf() const { return *gguf_; }

  const std::string& path() const override { return path_; }
  std::string_view kind() const override { return "gguf"; }
  const ModelConfig& config() const override { return config_; }
  const std::vector<SourceTensor>& tensors() const override { return tensors_; }
  /// Made at the first call (tens of milliseconds for a large vocabulary).
  const std::vector<AuxFile>& aux_files() const override;
  std::string fingerprint() const override;
  void read_rows(const SourceTensor& tensor, int64_t row_begin, int64_t row_end, DType as,
                 std::span<std::byte> out) const override;

 private:
  struct Stored {
    const GgufTensor* tensor = nullptr;
    bool permuted = false;  // rows of each head stand in the order of interleaved rotary pairs
  };
  std::vector<float> rope_factors() const;
  void list_tensors();
  std::string path_;
  std::unique_ptr<const Gguf> gguf_;
  ModelConfig config_;
  std::vector<SourceTensor> tensors_;
  std::unordered_map<std::string, Stored> stored_;  // by Hugging Face name
  mutable std::mutex aux_mutex_;                    // guards the making of aux_
  mutable std::vector<AuxFile> aux_;
};

/// "blk.3.attn_q.weight" → "model.layers.3.self_attn.q_proj.weight"; empty for a name that the Llama family does not
/// have.
std::string hf_name_of_gguf(std::string_view name);

}  // namespace firstlight

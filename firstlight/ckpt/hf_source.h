// SPDX-License-Identifier: Apache-2.0
// A Hugging Face directory as a Source: config.json, safetensors, and the files beside them.
#pragma once
#include <memory>
#include <unordered_map>

#include "firstlight/ckpt/source.h"
#include "firstlight/ckpt/source_files.h"

namespace firstlight {

/// The small files that a model directory may have and that a rank checkpoint takes along: config.json first.
std::span<const char* const> small_file_names();

class HfSource final : public Source {
 public:
  /// Throws Error{not_found} for a missing file, Error{bad_input} for a missing tensor and a shape that config.json
  /// does not give,
  /// Error{unsupported} for a tensor that the architecture does not have (rotary_emb.inv_freq and a tied lm_head equal
  /// to the embedding are skipped) and for integer weights.
  explicit HfSource(const fs::path& directory);

  const std::string& path() const override { return path_; }
  std::string_view kind() const override { return "safetensors"; }
  const ModelConfig& config() const override { return config_; }
  const std::vector<SourceTensor>& tensors() const override { return tensors_; }
  const std::vector<AuxFile>& aux_files() const override { return aux_; }
  std::string fingerprint() const override;
  void read_rows(const SourceTensor& tensor, int64_t row_begin, int64_t row_end, DType as,
                 std::span<std::byte> out) const override;
  std::optional<Place> place_of(const SourceTensor& tensor, int64_t row, DType as) const override;

 private:
  void list_tensors();
  void check_tied_head() const;
  std::string path_;
  ModelConfig config_;
  SafetensorsFiles files_;
  std::vector<SourceTensor> tensors_;
  std::vector<AuxFile> aux_;
};

/// Rows and bytes that a read_rows call means: checks range, `as` and the size of `out` (Error{bug}).
struct RowRange {
  int64_t columns = 0;   ///< elements of a row
  int64_t elements = 0;  ///< of all rows asked for
};
RowRange check_rows(const SourceTensor& tensor, int64_t row_begin, int64_t row_end, DType as, size_t out_bytes);

}  // namespace firstlight

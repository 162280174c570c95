// SPDX-License-Identifier: Apache-2.0
// Where each tensor of a rank stands in its parts: a pure function of shapes, element types, tp and part size
// (docs/rank-checkpoint.md §1).
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "firstlight/ckpt/safetensors.h"
#include "firstlight/ckpt/shard.h"
#include "firstlight/ckpt/slice_map.h"
#include "firstlight/ckpt/source.h"

namespace firstlight {

/// A tensor of the model and the type that the ranks store it in.
struct StoredTensor {
  ModelTensor model;
  DType dtype = DType::bf16;
  const SourceTensor* source = nullptr;

  int64_t n_rows() const { return model.shape.size() == 1 ? 1 : model.shape[0]; }  ///< as Source::read_rows counts them
  uint64_t row_bytes() const;
};

struct PlacedTensor {
  size_t index = 0;  ///< in the list of stored tensors
  uint64_t bytes = 0;
  uint64_t begin = 0;  ///< in the part's data section
};

struct PartLayout {
  std::string name;                  ///< "model-00001-of-00002.safetensors"
  std::vector<PlacedTensor> placed;  ///< in file order
  size_t n_head = 0;                 ///< placed[n_head …) are the tail
  size_t last_index = 0;             ///< the part's last tensor in layer order
  uint64_t data_bytes = 0, tail_begin = 0, first_leaf = 0;
  uint64_t file_bytes() const { return kDataBegin + data_bytes; }
  uint64_t n_leaves() const { return (data_bytes + kLeafBytes - 1) / kLeafBytes; }
};

/// The parts of each rank of a tp; all ranks are alike.
struct RankLayout {
  int tp = 1;
  std::vector<PartLayout> parts;
  uint64_t total_bytes() const;
};

/// Pairs the model's tensors with the source's and decides what is stored. Throws Error{unsupported} for stored types
/// that have no rule and for groups of mixed types (require_one_type_a_group), Error{bad_input} if the source lacks a
/// tensor or has it in another shape.
std::vector<StoredTensor> stored_tensors(const Source& source, DTypeChoice choice);
/// A line to `note` (may be empty) for every change of type, and what it does to values.
void note_changes(const std::vector<StoredTensor>& tensors, const std::function<void(const std::string&)>& note);
/// `source` for safetensors, `bf16` for a GGUF unless all its tensors are F32.
DTypeChoice default_dtype(const Source& source);
std::string_view to_string(DTypeChoice choice) noexcept;

RankLayout lay_out(const ModelConfig& config, const std::vector<StoredTensor>& tensors, int tp, uint64_t part_bytes);

/// The 2 MiB before the data section. Throws Error{unsupported} if the table does not fit.
std::string part_header(const ModelConfig& config, const std::vector<StoredTensor>& tensors, int tp,
                        const PartLayout& part);

/// "tp2/rank-00".
std::string rank_directory(int tp, int rank);

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// Where a rank's tensors lie in its files and in its arena, and whether the arenas fit in memory.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "firstlight/ckpt/manifest.h"
#include "firstlight/ckpt/safetensors.h"
#include "firstlight/ckpt/slice_map.h"
#include "firstlight/ckpt/weights.h"

namespace firstlight {

/// One tensor of one rank.
struct ArenaTensor {
  std::string name;
  DType dtype = DType::bf16;
  std::vector<int64_t> shape;   ///< of the slice
  int gate = 0;                 ///< see weights.h
  size_t part = 0;              ///< which of the rank's parts holds it …
  uint64_t begin = 0, end = 0;  ///< … and where in that part's data section
  bool in_tail = false;         ///< begin ≥ the part's tail_begin
  uint64_t at = 0;              ///< offset in the arena, a multiple of kSlotAlignment
};

/// The arena: the parts' page-multiple regions one after another, byte for byte as in the files, then a slot for each
/// tail tensor.
struct ArenaLayout {
  std::vector<ArenaTensor> tensors;  ///< by (part, begin)
  uint64_t bytes = 0;
};

/// What the rank must hold by configuration, where its parts' headers say that it is. Throws Error{bad_input} naming
/// file and tensor if a tensor is missing, unknown, doubled, of another type or shape, or not where a tail or a
/// page-multiple tensor may stand, and Error{unsupported} for types that differ within a group
/// (require_one_type_a_group). `headers` belong to the rank's parts, in order.
ArenaLayout lay_out_arena(const ModelConfig& config, const Manifest& manifest, const ManifestRank& parts, int tp,
                          int rank, std::span<const SafetensorsHeader> headers);

/// The same order of tensors for a rank that is made in memory: one part that is not in any file.
ArenaLayout lay_out_arena(const ModelConfig& config, std::span<const DType> dtypes, int tp, int rank);

/// Throws Error{bad_input} unless OUT/config.json, parsed, is of the architecture that the manifest names.
void check_architecture(const ModelConfig& config, const Manifest& manifest, const fs::path& out);

/// Throws Error{bad_input} unless the manifest's tensors are those of the architecture, cut as it demands.
void check_tensor_list(const ModelConfig& config, const Manifest& manifest);

/// Told before their headers have been read: where in the arena byte 0 of each part's data section lies, a multiple of
/// kPageBytes; and what the layout of all will take at most, a multiple of it, too.
std::vector<uint64_t> region_begins(const ManifestRank& parts);
uint64_t most_arena_bytes(const ManifestRank& parts, size_t n_tensors);

/// An arena of that layout, nothing in it yet, all gates closed. `arena` has at least the layout's bytes.
RankWeights make_rank_weights(const ModelConfig& config, const ArenaLayout& layout, Buffer arena, int tp, int rank);

/// Throws Error{out_of_memory}, saying what is needed, what is there and what would fit, if `weights` + `reserve` bytes
/// are more than `available`.
void require_fits(uint64_t weights, uint64_t reserve, uint64_t available, Device device);

}  // namespace firstlight

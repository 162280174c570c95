// SPDX-License-Identifier: Apache-2.0
// Which part of which tensor each tensor-parallel rank holds: one map an architecture, shared by shard, load and plan.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "firstlight/ckpt/manifest.h"
#include "firstlight/ckpt/model_config.h"

namespace firstlight {

/// A tensor that the architecture has, in layer order, with its whole shape.
struct ModelTensor {
  std::string name;
  std::vector<int64_t> shape;  ///< [rows, columns] or [n]
  SliceKind slice = SliceKind::replicated;
  int gate = 0;  ///< see n_gates() in weights.h
};

/// All tensors of the model in layer order: q,k,v weights adjacent, then gate,up adjacent; biases and norms beside
/// them.
std::vector<ModelTensor> model_tensors(const ModelConfig& config);

/// One product reads q,k,v (or gate,up) as one matrix, and their biases as one vector: each group needs one type.
/// Throws Error{unsupported} naming the first two tensors that differ.
void require_one_type_a_group(const ModelConfig& config, const std::function<DType(const std::string& name)>& type_of);

/// A rectangle of a tensor: rows [row_begin, row_end) × columns [col_begin, col_end); for 1-D tensors rows are
/// elements. row_end may pass the tensor's end for vocab_rows: the rows beyond are padding, zero.
struct Slice {
  int64_t row_begin = 0, row_end = 0;
  int64_t col_begin = 0, col_end = 0;
  std::vector<int64_t> shape() const;  ///< of the slice: 1 or 2 dimensions as the tensor
  int n_dims = 2;
};
Slice slice_of(const ModelConfig& config, const ModelTensor& tensor, int tp, int rank);

/// Whether the model can be cut in tp: tp divides n_heads and hidden_dim, and tp divides n_kv_heads or n_kv_heads
/// divides tp.
bool tp_is_possible(const ModelConfig& config, int tp);
/// Throws Error{bad_input} "tp 2 does not divide … ; possible: 1, 3".
void require_tp(const ModelConfig& config, int tp);
std::vector<int> possible_tps(const ModelConfig& config, int at_most = 64);

/// Vocabulary rows a rank stores: vocab_size rounded up to a multiple of tp, over tp.
int64_t vocab_rows_per_rank(const ModelConfig& config, int tp);

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// One rank's weights as the forward pass uses them: q, k, v as one matrix, gate and up as one, biases likewise, behind
// the loader's gates.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "firstlight/ckpt/model_config.h"
#include "firstlight/ckpt/weights.h"
#include "firstlight/device/buffer.h"
#include "firstlight/ops/ops.h"

namespace firstlight {

/// One layer; every size is this rank's. What the architecture lacks has data == nullptr.
struct LlamaLayer {
  Weight attention_norm;         ///< [dim]
  Weight qkv, qkv_bias;          ///< [(n_heads + 2 n_kv_heads) * head_dim, dim]
  Weight q_norm, k_norm;         ///< [head_dim]
  Weight o, o_bias;              ///< [dim, n_heads * head_dim]
  Weight mlp_norm;               ///< [dim]
  Weight gate_up, gate_up_bias;  ///< [2 * hidden_dim, dim]
  Weight down, down_bias;        ///< [dim, hidden_dim]
};

/// For Ops' optional parameters.
inline const Weight* if_present(const Weight& weight) { return weight.data != nullptr ? &weight : nullptr; }

/// Views into a RankWeights that must outlive it. embedding(), layer() and head() block until the bytes they need are
/// there and rethrow a failed load; one thread at a time.
class LlamaWeights {
 public:
  /// Checks the table against the architecture's slice map: Error{bug} for a tensor that is missing or has another
  /// shape, Error{unsupported} for elements other than f32 and bf16. Reads no weights.
  LlamaWeights(const ModelConfig& config, RankWeights& weights);

  /// Whether every gate is open: no call will block.
  bool all_there() const { return n_bound_ == static_cast<int>(layers_.size()) && lm_head_.data != nullptr; }

  int64_t vocab_begin() const { return weights_->vocab_begin; }

  const Weight& embedding();  ///< [vocab rows, dim], padding included
  const LlamaLayer& layer(int i);
  const Weight& final_norm();  ///< [dim]
  const Weight& lm_head();     ///< [vocab rows, dim] without padding: maybe no rows on the last ranks

 private:
  void check_table() const;
  const Tensor& tensor(std::string_view name) const;
  Weight weight(std::string_view name) const;
  /// The tensors stacked by rows: where they lie if they are neighbours in the arena, else a copy made once.
  Weight stacked(const std::string& prefix, std::initializer_list<std::string_view> names, std::string_view suffix);
  void bind_layer(int i);
  void bind_head();

  const ModelConfig& config_;
  RankWeights* weights_;
  Weight embedding_, final_norm_, lm_head_;
  std::vector<LlamaLayer> layers_;
  int n_bound_ = 0;  ///< layers whose gates were seen open
  std::vector<Buffer> copies_;
};

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// One tensor-parallel rank of a Llama-family model: its weights, its KV pages, its scratch, and the forward pass.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "firstlight/base/thread_pool.h"
#include "firstlight/comm/comm.h"
#include "firstlight/device/buffer.h"
#include "firstlight/device/stream.h"
#include "firstlight/kv/page_pool.h"
#include "firstlight/model/llama_weights.h"
#include "firstlight/model/runner.h"
#include "firstlight/ops/ops.h"
#include "firstlight/quant/turboquant.h"

namespace firstlight {

/// One step's work, the same for all ranks.
struct Batch {
  std::vector<int> ids;
  std::vector<AttentionSpan> spans;   ///< cover the rows of ids in order
  std::vector<AttentionSpan> wanted;  ///< the parts of spans whose logits are wanted, in order
  Matrix<float> logits;               ///< [wanted rows, vocabulary from logits_begin on]
  int64_t logits_begin = 0;           ///< the first column of `logits` is of this token
};

/// What a rank makes of the wanted rows instead of logits: at most one of these; all ranks the same.
struct Picks {
  std::span<Likeliest> likeliest = {};  ///< [wanted rows]: of this rank's columns
  std::span<const Draw> draws = {};     ///< [wanted rows]; several ranks: on GPUs, where all draw the same …
  std::span<int> drawn = {};            ///< … and each writes it
};

/// Sizes of one rank of `tp`.
struct RankShape {
  RankShape(const ModelConfig& config, int tp);
  int n_layers, dim, n_heads, n_kv_heads, head_dim, hidden_dim;
  int64_t heads_cols() const { return static_cast<int64_t>(n_heads) * head_dim; }
  int64_t qkv_cols() const { return static_cast<int64_t>(n_heads + 2 * n_kv_heads) * head_dim; }
  uint64_t layer_page_bytes(KvKind kind) const;  ///< one page of one layer
  uint64_t page_bytes(KvKind kind) const;        ///< over all layers
  uint64_t scratch_bytes(int64_t n_rows) const;  ///< activations of a batch
};

/// Rows that ranks on GPUs draw from at once; their logits, 8.2 MB of a vocabulary of 128,256, lie behind the
/// activations.
inline constexpr int64_t kDrawnAtOnce = 16;
uint64_t drawn_bytes(int tp, Device device, int64_t vocab_size);

/// Used by one thread at a time, beside the pool's threads of its own.
class LlamaRank {
 public:
  /// `comm`, this rank's end, outlives it.
  LlamaRank(const ModelConfig& config, RankWeights& weights, const RunnerOptions& options, Comm& comm, int n_threads,
            int spin);

  /// Computes the batch together with the other ranks and writes this rank's columns of batch.logits, or `picks`.
  void forward(const Batch& batch, const Picks& picks);
  /// Adds this rank's heads to `sums` of all heads: Runner::sum_keys_and_values().
  void sum_keys_and_values(std::span<const int32_t> pages, int64_t begin, int64_t end, std::span<double> sums) const;
  std::string_view ops_name() const { return ops_->name(); }
  RankPages pages() const;

 private:
  /// Rows of activations, carved from the scratch anew for each batch so that a small batch touches little memory.
  struct Activations {
    Matrix<float> x;       ///< [n, dim], the residual stream
    Matrix<float> normed;  ///< [n, dim]
    Matrix<float> qkv;     ///< [n, (n_heads + 2 n_kv_heads) * head_dim]
    Matrix<float> heads;   ///< [n, n_heads * head_dim]; lies where normed lay
    Matrix<float> hidden;  ///< [n, hidden_dim]; lies where qkv lay
  };
  Activations carve(int64_t n_rows) const;
  void compute(const Batch& batch, const Picks& picks);
  /// From now on only the wanted rows, moved to the front; of x and heads.
  void keep_wanted(const Batch& batch, Activations& a);
  KvLayer kv_layer(int i) const;
  void embed(const Batch& batch, const Activations& a);
  void store_keys_and_values(const LlamaLayer& w, const KvLayer& kv, const Batch& batch, const Activations& a);
  void attend(const KvLayer& kv, std::span<const AttentionSpan> spans, const Activations& a);
  void mlp(const LlamaLayer& w, const Activations& a);
  void add_to_residual(Matrix<const float> in, const Weight& w, const Weight& bias, Matrix<float> x);
  void write_logits(const Activations& a, const Batch& batch, const Picks& picks);
  void draw(const Activations& a, const Picks& picks);

  const RankShape shape_;
  const int n_model_kv_heads_, first_kv_head_;  ///< of the whole model, and this rank's first among them
  LlamaWeights weights_;
  const std::vector<double> inverse_frequencies_;
  const float eps_;
  const KvKind kv_kind_;
  const int spin_;
  Comm& comm_;
  ThreadPool pool_;
  const Stream stream_;  ///< what ops and comm queue on
  std::unique_ptr<Ops> ops_;
  Buffer kv_;     ///< [page][layer][k, v][n_kv_heads][64][head_dim], or [page][layer][n_kv_heads] pages of codes
  Buffer exact_;  ///< beside codes: [exact page][layer][k, v][n_kv_heads][64][head_dim] bf16
  std::vector<turboquant::Signs> signs_;  ///< of codes: [layer][n_kv_heads][key, value]
  Buffer means_;                          ///< of centred codes: f32 [layer][k, v][n_kv_heads][head_dim]; else empty
  const int64_t vocab_size_;
  Buffer scratch_;  ///< activations; behind them, of several ranks on GPUs, rows of logits of the whole vocabulary
};

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// The forward pass of the Llama family: x += attention(norm(x)); x += mlp(norm(x)); logits = lm_head(norm(x)).
#include "firstlight/model/llama_rank.h"

#include <algorithm>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/device/copy.h"
#include "firstlight/ops/cuda_ops.h"

namespace firstlight {
namespace {

/// Regions of the scratch begin at multiples of 256 bytes.
int64_t region(int64_t floats) { return (floats + 63) / 64 * 64; }

Matrix<const float> constant(Matrix<float> m) { return {m.data, m.rows, m.cols, m.stride}; }

std::unique_ptr<Ops> make_ops(const RunnerOptions& options, const Stream& stream, const Comm& comm, ThreadPool& pool) {
  if (options.make_ops) return options.make_ops(pool);
  if (stream.device().kind == Device::Kind::cpu) return make_cpu_ops(pool);
  CudaOpsOptions cuda;
  cuda.stream = &stream;
  cuda.graphs = comm.size() == 1 || comm.recordable();
  cuda.fold_norms = comm.size() == 1;
  cuda.n_sharing = cuda.graphs ? 1 : comm.size();  // what cannot be recorded may share a GPU
  return make_cuda_ops(stream.device(), cuda);
}

/// Where ranks outnumber key/value heads, several hold the same one.
int first_kv_head(const ModelConfig& config, const RankWeights& weights) {
  return weights.rank * config.n_kv_heads / weights.tp;
}

/// [layer][kv head][key, value]. Heads count over the model, so that a token has the same codes at every tp.
std::vector<turboquant::Signs> signs_of_rank(const ModelConfig& config, const RankWeights& weights, KvKind kind) {
  std::vector<turboquant::Signs> signs;
  if (!is_compressed(kind)) return signs;
  const int first = first_kv_head(config, weights);
  for (int layer = 0; layer < config.n_layers; ++layer) {
    for (int head = first; head < first + std::max(1, config.n_kv_heads / weights.tp); ++head) {
      signs.push_back(turboquant::signs_of(turboquant::kSeed, layer, head, turboquant::Side::key));
      signs.push_back(turboquant::signs_of(turboquant::kSeed, layer, head, turboquant::Side::value));
    }
  }
  return signs;
}

/// [layer][k, v][this rank's kv heads][head_dim], on its device.
Buffer means_of_rank(Device device, const RankShape& shape, int first_head, const KvMeans* means) {
  if (!means) return {};
  std::vector<float> own;
  const std::ptrdiff_t side = std::ptrdiff_t{means->n_kv_heads} * shape.head_dim;
  const std::ptrdiff_t first = std::ptrdiff_t{first_head} * shape.head_dim,
                       n = std::ptrdiff_t{shape.n_kv_heads} * shape.head_dim;
  for (int i = 0; i < 2 * shape.n_layers; ++i) {
    const auto begin = means->values.begin() + i * side + first;
    own.insert(own.end(), begin, begin + n);
  }
  Buffer out(device, own.size() * sizeof(float));
  copy(out.data(), device, reinterpret_cast<const std::byte*>(own.data()), {}, out.size());
  return out;
}

/// The KV cache is the one buffer whose size is the caller's choice: who cannot have it is told so.
Buffer kv_buffer(Device device, uint64_t size_bytes) {
  try {
    return {device, size_bytes, Reach::own};
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::out_of_memory) throw;
    throw Error(ErrorKind::out_of_memory,
                str("the KV cache: ", e.what(), "; a smaller --max-context or --kv-memory takes less"));
  }
}

std::span<float> flat(Matrix<float> m) { return {m.data, static_cast<size_t>(m.rows * m.cols)}; }

}  // namespace

RankShape::RankShape(const ModelConfig& config, int tp)
    : n_layers(config.n_layers),
      dim(config.dim),
      n_heads(config.n_heads / tp),
      n_kv_heads(std::max(1, config.n_kv_heads / tp)),
      head_dim(config.head_dim),
      hidden_dim(config.hidden_dim / tp) {}

uint64_t RankShape::layer_page_bytes(KvKind kind) const { return kv_page_bytes(kind, n_kv_heads, head_dim); }

uint64_t RankShape::page_bytes(KvKind kind) const { return layer_page_bytes(kind) * static_cast<uint64_t>(n_layers); }

uint64_t RankShape::scratch_bytes(int64_t n) const {
  const int64_t floats = region(n * dim) + region(n * std::max<int64_t>(dim, heads_cols())) +
                         region(n * std::max<int64_t>(qkv_cols(), hidden_dim));
  return static_cast<uint64_t>(floats) * sizeof(float);
}

uint64_t drawn_bytes(int tp, Device device, int64_t vocab_size) {
  if (tp == 1 || device.kind == Device::Kind::cpu) return 0;
  return static_cast<uint64_t>(region(kDrawnAtOnce * vocab_size)) * sizeof(float);
}

LlamaRank::LlamaRank(const ModelConfig& config, RankWeights& weights, const RunnerOptions& options, Comm& comm,
                     int n_threads, int spin)
    : shape_(config, weights.tp),
      n_model_kv_heads_(config.n_kv_heads),
      first_kv_head_(first_kv_head(config, weights)),
      weights_(config, weights),
      inverse_frequencies_(rope_inverse_frequencies(config)),
      eps_(static_cast<float>(config.norm_eps)),
      kv_kind_(options.kv),
      spin_(spin),
      comm_(comm),
      pool_(n_threads, 0),
      stream_(weights.arena.device()),
      ops_(make_ops(options, stream_, comm, pool_)),
      kv_(kv_buffer(weights.arena.device(), static_cast<uint64_t>(options.n_pages) * shape_.page_bytes(options.kv))),
      exact_(kv_buffer(weights.arena.device(),
                       static_cast<uint64_t>(options.n_exact_pages) * shape_.page_bytes(KvKind::bf16))),
      signs_(signs_of_rank(config, weights, options.kv)),
      means_(means_of_rank(weights.arena.device(), shape_, first_kv_head_, options.means.get())),
      vocab_size_(config.vocab_size),
      scratch_(weights.arena.device(), shape_.scratch_bytes(options.max_batch_tokens) +
                                           drawn_bytes(weights.tp, weights.arena.device(), config.vocab_size)) {}

void LlamaRank::forward(const Batch& batch, const Picks& picks) {
  PassRows rows{batch.ids, batch.spans, batch.wanted, batch.logits, picks.likeliest, picks.draws, picks.drawn};
  if (comm_.size() > 1 && comm_.recordable()) rows.least_of_ranks = [this](int mine) { return comm_.least(mine); };
  if (!ops_->begin(rows, weights_.all_there())) compute(batch, picks);
  ops_->end();
  comm_.check();  // what waits on a device for a rank that failed is told to go on with whatever is there
}

void LlamaRank::compute(const Batch& batch, const Picks& picks) {
  pool_.set_spin(weights_.all_there() ? spin_ : 0);  // while weights arrive the cores are the readers'
  Activations a = carve(static_cast<int64_t>(batch.ids.size()));
  embed(batch, a);
  for (int i = 0; i < shape_.n_layers; ++i) {
    const LlamaLayer& w = weights_.layer(i);
    const KvLayer kv = kv_layer(i);
    const bool last = i + 1 == shape_.n_layers;
    store_keys_and_values(w, kv, batch, a);
    if (last && batch.wanted.empty()) return;
    attend(kv, last ? batch.wanted : batch.spans, a);
    if (last) keep_wanted(batch, a);  // nothing reads what the last layer would make of the other rows
    add_to_residual(constant(a.heads), w.o, w.o_bias, a.x);
    mlp(w, a);
  }
  write_logits(a, batch, picks);
}

/// x = the embedding table's rows. A row comes from the rank that holds it; on the others it is zero.
void LlamaRank::embed(const Batch& batch, const Activations& a) {
  ops_->embed(batch.ids, weights_.embedding(), weights_.vocab_begin(), a.x);
  comm_.all_reduce_sum(flat(a.x), stream_);
}

/// q, k, v = rope(norm(x) wᵀ); k and v go into the pages.
void LlamaRank::store_keys_and_values(const LlamaLayer& w, const KvLayer& kv, const Batch& batch,
                                      const Activations& a) {
  ops_->rms_norm(constant(a.x), w.attention_norm, eps_, a.normed);
  ops_->matmul(constant(a.normed), w.qkv, if_present(w.qkv_bias), a.qkv);
  ops_->rope_and_store(a.qkv, shape_.n_heads, if_present(w.q_norm), if_present(w.k_norm), eps_, inverse_frequencies_,
                       batch.spans, kv);
}

/// heads = softmax(q kᵀ / √head_dim) v
void LlamaRank::attend(const KvLayer& kv, std::span<const AttentionSpan> spans, const Activations& a) {
  const Matrix<const float> q = {a.qkv.data, a.qkv.rows, a.heads.cols, a.qkv.stride};
  ops_->attend(q, shape_.n_heads, spans, kv, a.heads);
}

/// x += down(silu(gate(norm(x))) * up(norm(x)))
void LlamaRank::mlp(const LlamaLayer& w, const Activations& a) {
  ops_->rms_norm(constant(a.x), w.mlp_norm, eps_, a.normed);
  ops_->gate_up_silu(constant(a.normed), w.gate_up, if_present(w.gate_up_bias), a.hidden);
  add_to_residual(constant(a.hidden), w.down, w.down_bias, a.x);
}

/// x += Σ over ranks of in wᵀ, + bias. Rank 0 brings the residual and the bias into the sum, the others their share
/// alone.
void LlamaRank::add_to_residual(Matrix<const float> in, const Weight& w, const Weight& bias, Matrix<float> x) {
  if (comm_.rank() == 0) {
    ops_->matmul_add(in, w, if_present(bias), x);
  } else {
    ops_->matmul(in, w, nullptr, x);
  }
  comm_.all_reduce_sum(flat(x), stream_);
}

/// Each rank writes its columns where the caller wants them; the padding rows of the vocabulary have none.
void LlamaRank::write_logits(const Activations& a, const Batch& batch, const Picks& picks) {
  ops_->rms_norm(constant(a.x), weights_.final_norm(), eps_, a.normed);
  const Weight& lm_head = weights_.lm_head();
  if (!picks.likeliest.empty()) {
    ops_->likeliest(constant(a.normed), lm_head, static_cast<int>(weights_.vocab_begin()), picks.likeliest);
    return;
  }
  if (!picks.draws.empty()) return draw(a, picks);
  if (lm_head.rows == 0) return;
  const Matrix<float>& logits = batch.logits;
  ops_->logits(constant(a.normed), lm_head,
               {logits.data + (weights_.vocab_begin() - batch.logits_begin), logits.rows, lm_head.rows, logits.stride});
}

void LlamaRank::draw(const Activations& a, const Picks& picks) {
  if (comm_.size() == 1) {
    return ops_->draw(constant(a.normed), weights_.lm_head(), picks.draws, picks.drawn, nullptr);
  }
  std::byte* const behind =
      scratch_.data() + scratch_.size() - drawn_bytes(comm_.size(), scratch_.device(), vocab_size_);
  const LogitsOfRanks ranks{weights_.vocab_begin(),
                            {reinterpret_cast<float*>(behind), kDrawnAtOnce, vocab_size_, vocab_size_},
                            [this](Matrix<float> whole) { comm_.all_reduce_sum(flat(whole), stream_); }};
  ops_->draw(constant(a.normed), weights_.lm_head(), picks.draws, picks.drawn, &ranks);
}

void LlamaRank::keep_wanted(const Batch& batch, Activations& a) {
  ops_->keep_rows(batch.wanted, a.x);
  ops_->keep_rows(batch.wanted, a.heads);
  a.normed.rows = a.qkv.rows = a.hidden.rows = a.x.rows;
}

LlamaRank::Activations LlamaRank::carve(int64_t n) const {
  const int64_t dim = shape_.dim, heads = shape_.heads_cols(), qkv = shape_.qkv_cols(), hidden = shape_.hidden_dim;
  float* x = reinterpret_cast<float*>(scratch_.data());
  float* inputs = x + region(n * dim);
  float* outputs = inputs + region(n * std::max(dim, heads));
  return {{x, n, dim, dim},
          {inputs, n, dim, dim},
          {outputs, n, qkv, qkv},
          {inputs, n, heads, heads},
          {outputs, n, hidden, hidden}};
}

RankPages LlamaRank::pages() const {
  return {kv_.device(), kv_.data(), shape_.page_bytes(kv_kind_), exact_.data(), shape_.page_bytes(KvKind::bf16)};
}

/// Page-major: a page's layers lie together, so the first tokens touch one run of memory and a page never used costs
/// none.
KvLayer LlamaRank::kv_layer(int i) const {
  const auto layer = static_cast<uint64_t>(i);
  KvLayer kv{kv_.data() + layer * shape_.layer_page_bytes(kv_kind_), shape_.page_bytes(kv_kind_), kv_kind_,
             shape_.n_kv_heads, shape_.head_dim};
  if (!is_compressed(kv_kind_)) return kv;
  kv.exact = exact_.data() + layer * shape_.layer_page_bytes(KvKind::bf16);
  kv.exact_stride = shape_.page_bytes(KvKind::bf16);
  kv.signs = signs_.data() + layer * 2 * static_cast<uint64_t>(shape_.n_kv_heads);
  if (means_.size() > 0)
    kv.means = reinterpret_cast<const float*>(means_.data()) +
               layer * 2 * static_cast<uint64_t>(shape_.n_kv_heads * shape_.head_dim);
  return kv;
}

void LlamaRank::sum_keys_and_values(std::span<const int32_t> pages, int64_t begin, int64_t end,
                                    std::span<double> sums) const {
  if (kv_kind_ != KvKind::f32 || stream_.device().kind != Device::Kind::cpu)
    throw Error(ErrorKind::unsupported, str("keys and values are added up from an f32 cache on the CPU, this is ",
                                            to_string(kv_kind_), " on ", to_string(stream_.device())));
  const int64_t d = shape_.head_dim;
  if (static_cast<int64_t>(sums.size()) != int64_t{2} * shape_.n_layers * n_model_kv_heads_ * d)
    throw Error(ErrorKind::bug, str(sums.size(), " sums of keys and values"));
  for (int layer = 0; layer < shape_.n_layers; ++layer) {
    const KvLayer kv = kv_layer(layer);
    for (int64_t t = begin; t < end; ++t) {
      const float* page = reinterpret_cast<const float*>(
          kv.data + static_cast<uint64_t>(pages[static_cast<size_t>(t / kPageTokens)]) * kv.page_stride);
      for (int i = 0; i < 2 * kv.n_kv_heads; ++i) {
        const int side = i / kv.n_kv_heads, head = first_kv_head_ + i % kv.n_kv_heads;
        const float* x = page + (int64_t{i} * kPageTokens + t % kPageTokens) * d;
        double* to = sums.data() + ((int64_t{2} * layer + side) * n_model_kv_heads_ + head) * d;
        for (int64_t k = 0; k < d; ++k) to[k] += static_cast<double>(x[k]);
      }
    }
  }
}

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
#include "bench/kv_variants.h"

#include <algorithm>
#include <map>
#include <vector>

#include "firstlight/base/half.h"

namespace firstlight {
namespace {

constexpr VectorFormat codebook(int bits) { return {Rounding::unbiased, bits, Turning::signed_rounds}; }
constexpr VectorFormat blocks(int bits, Turning turning = Turning::none) { return {Rounding::blocks, bits, turning}; }
constexpr KvVariant both(std::string_view name, const VectorFormat& format, int sinks = 1, int tail = 3) {
  return {name, format, format, sinks, tail};
}

constexpr KvVariant kVariants[] = {
    both("v4", codebook(4)),
    both("v4-unsigned", {Rounding::unbiased, 4, Turning::hadamard}),
    both("v4-unrotated", {Rounding::unbiased, 4, Turning::none}),
    both("v4-norm", {Rounding::norm, 4, Turning::signed_rounds}),
    both("v4-qjl", {Rounding::prod, 4, Turning::signed_rounds}),
    both("v4-no-sinks", codebook(4), 0, 3),
    both("v4-no-window", codebook(4), 1, 0),
    both("v4-no-exact", codebook(4), 0, 0),
    {"v5-v4", codebook(5), codebook(4)},
    both("v5", codebook(5)),
    both("fp8", {Rounding::e4m3, 8, Turning::none}),
    both("q8_0", blocks(8)),
    both("q4_0", blocks(4)),
    both("q4_0-rotated", blocks(4, Turning::signed_rounds)),
    both("nvfp4", {Rounding::nvfp4, 4, Turning::none}),
};

class VariantOps final : public Ops {
 public:
  VariantOps(ThreadPool& pool, const KvVariant& variant, int64_t n_pages)
      : pool_(pool), inner_(make_cpu_ops(pool)), variant_(variant), n_pages_(n_pages) {}

  std::string_view name() const override { return inner_->name(); }
  void embed(std::span<const int> ids, const Weight& table, int64_t first_row, Matrix<float> out) override {
    inner_->embed(ids, table, first_row, out);
  }
  void rms_norm(Matrix<const float> x, const Weight& weight, float eps, Matrix<float> out) override {
    inner_->rms_norm(x, weight, eps, out);
  }
  void matmul(Matrix<const float> x, const Weight& w, const Weight* bias, Matrix<float> out) override {
    inner_->matmul(x, w, bias, out);
  }
  void matmul_add(Matrix<const float> x, const Weight& w, const Weight* bias, Matrix<float> out) override {
    inner_->matmul_add(x, w, bias, out);
  }
  void gate_up_silu(Matrix<const float> x, const Weight& gate_up, const Weight* bias, Matrix<float> out) override {
    inner_->gate_up_silu(x, gate_up, bias, out);
  }

  void rope_and_store(Matrix<float> qkv, int n_heads, const Weight* q_norm, const Weight* k_norm, float eps,
                      std::span<const double> inverse_frequencies, std::span<const AttentionSpan> spans,
                      const KvLayer& kv) override {
    Layer& layer = layer_of(kv);
    inner_->rope_and_store(qkv, n_heads, q_norm, k_norm, eps, inverse_frequencies, spans, layer.view);
    for (const AttentionSpan& span : spans) {
      pool_.for_range(span.n_rows, 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t row = begin; row < end; ++row) round_token(layer, span, span.position + row);
      });
    }
  }

  /// Rows of one page read the same pages exactly: they become a span of their own, with its own page table.
  void attend(Matrix<const float> q, int n_heads, std::span<const AttentionSpan> spans, const KvLayer& kv,
              Matrix<float> out) override {
    std::vector<AttentionSpan> parts;
    std::vector<std::vector<int32_t>> tables;
    for (const AttentionSpan& span : spans) {
      for (int64_t row = 0, n; row < span.n_rows; row += n) {
        const int64_t position = span.position + row, last = position / kPageTokens;
        n = std::min(span.n_rows - row, (last + 1) * kPageTokens - position);
        std::vector<int32_t>& table = tables.emplace_back(static_cast<size_t>(last) + 1);
        for (int64_t page = 0; page <= last; ++page) {
          const bool exact = page < variant_.sinks || page + variant_.tail > last;
          table[static_cast<size_t>(page)] = span.pages[page] + (exact ? 0 : static_cast<int32_t>(n_pages_));
        }
        parts.push_back({span.row_begin + row, n, position, table.data()});
      }
    }
    inner_->attend(q, n_heads, parts, layer_of(kv).view, out);
  }

 private:
  struct Layer {
    std::vector<float> pages;  // [exact, read back][n_pages][k, v][n_kv_heads][64][head_dim]
    std::vector<turboquant::Signs> signs;
    KvLayer view;
  };

  /// Layers are known by where the runner has theirs, and are first seen in order.
  Layer& layer_of(const KvLayer& kv) {
    const auto found = layers_.find(kv.data);
    if (found != layers_.end()) return found->second;
    if (!keys_) {
      keys_ = std::make_unique<VectorCodec>(variant_.key, kv.head_dim);
      values_ = std::make_unique<VectorCodec>(variant_.value, kv.head_dim);
    }
    const int number = static_cast<int>(layers_.size());
    Layer& layer = layers_[kv.data];
    const size_t page = static_cast<size_t>(2 * kv.n_kv_heads * kPageTokens * kv.head_dim);
    layer.pages.resize(2 * static_cast<size_t>(n_pages_) * page);
    for (int i = 0; i < 2 * kv.n_kv_heads; ++i) {
      layer.signs.push_back(turboquant::signs_of(1, number, i % kv.n_kv_heads,
                                                 i < kv.n_kv_heads ? turboquant::Side::key : turboquant::Side::value));
    }
    layer.view = {reinterpret_cast<std::byte*>(layer.pages.data()), page * sizeof(float), KvKind::f32, kv.n_kv_heads,
                  kv.head_dim};
    return layer;
  }

  void round_token(Layer& layer, const AttentionSpan& span, int64_t position) {
    const KvLayer& kv = layer.view;
    const int64_t d = kv.head_dim, page_floats = 2 * int64_t{kv.n_kv_heads} * kPageTokens * d;
    float* page = layer.pages.data() + span.pages[position / kPageTokens] * page_floats;
    for (int i = 0; i < 2 * kv.n_kv_heads; ++i) {
      float* exact = page + (i * kPageTokens + position % kPageTokens) * d;
      float* read_back = exact + n_pages_ * page_floats;
      std::copy_n(exact, d, read_back);
      (i < kv.n_kv_heads ? *keys_ : *values_).round(layer.signs[static_cast<size_t>(i)], read_back);
      for (int64_t k = 0; k < d; ++k) exact[k] = bf16_to_f32(f32_to_bf16(exact[k]));
    }
  }

  ThreadPool& pool_;
  const std::unique_ptr<Ops> inner_;
  const KvVariant variant_;
  const int64_t n_pages_;
  std::unique_ptr<VectorCodec> keys_, values_;
  std::map<const std::byte*, Layer> layers_;
};

}  // namespace

std::span<const KvVariant> kv_variants() { return kVariants; }

const KvVariant* find_kv_variant(std::string_view name) {
  for (const KvVariant& variant : kVariants) {
    if (variant.name == name) return &variant;
  }
  return nullptr;
}

std::unique_ptr<Ops> make_variant_ops(ThreadPool& pool, const KvVariant& variant, int64_t n_pages) {
  return std::make_unique<VariantOps>(pool, variant, n_pages);
}

}  // namespace firstlight

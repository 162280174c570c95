// SPDX-License-Identifier: Apache-2.0
// Centring of keys and values in the forward pass: what a calibration adds up, what it is worth to a model whose keys
// have a bias, and where it is refused.
#include <gtest/gtest.h>

#include "firstlight/base/error.h"
#include "firstlight/model/runner_testing.h"

namespace firstlight {
namespace {

/// A model like Qwen2: keys have a bias, and nothing normalises them. The bias stands in rotary pairs [first, last).
struct BiasedModel : Fixture {
  static ModelConfig config() {
    ModelConfig config = small_code_config();
    config.qk_norm = false;
    return config;
  }

  BiasedModel(KvKind kind, int first, int last, std::shared_ptr<const KvMeans> means = nullptr, int tp = 1)
      : Fixture(tp, config()) {
    runner.reset();
    for (int layer = 0; layer < model.config.n_layers; ++layer) {
      std::vector<float>& bias = model.tensors.at("model.layers." + std::to_string(layer) + ".self_attn.k_proj.bias");
      for (size_t i = 0; i < bias.size(); ++i) {
        const int pair = static_cast<int>(i % 32);
        if (pair >= first && pair < last) bias[i] += i % 2 ? 30.0f : -30.0f;
      }
    }
    weights = cut_all(model, tp, DType::f32);
    options.kv = kind;
    options.means = std::move(means);
    options.n_exact_pages = is_compressed(kind) ? exact_pages_for(1, options.max_batch_tokens, options.n_pages) : 0;
    options.make_ops = nullptr;
    runner = make_runner(model.config, weights, options);
  }

  std::vector<float> logits_of(const std::vector<int>& ids, int n_logits) {
    PageTable pages(runner->pool(), runner->exact_pool());
    EXPECT_TRUE(pages.try_reserve(static_cast<int64_t>(ids.size())));
    std::vector<float> logits;
    const SequenceChunk all{ids, 0, &pages, n_logits};
    runner->forward({&all, 1}, logits);
    return logits;
  }

  /// Sums over tokens [begin, n) of a sequence.
  std::vector<double> sums_of(const std::vector<int>& ids, int64_t begin) {
    PageTable pages(runner->pool());
    EXPECT_TRUE(pages.try_reserve(static_cast<int64_t>(ids.size())));
    std::vector<float> logits;
    const SequenceChunk all{ids, 0, &pages, 0};
    runner->forward({&all, 1}, logits);
    const ModelConfig& c = model.config;
    std::vector<double> sums(static_cast<size_t>(2 * c.n_layers * c.n_kv_heads * c.head_dim));
    runner->sum_keys_and_values(pages, begin, static_cast<int64_t>(ids.size()), sums);
    return sums;
  }

  std::shared_ptr<const KvMeans> calibrate(const std::vector<int>& ids) {
    const ModelConfig& c = model.config;
    auto means = std::make_shared<KvMeans>(KvMeans{c.n_layers, c.n_kv_heads, c.head_dim, {}});
    for (const double sum : sums_of(ids, kPageTokens))
      means->values.push_back(static_cast<float>(sum / static_cast<double>(std::ssize(ids) - kPageTokens)));
    return means;
  }
};

/// Values of the first layer, from their definition: norm(embedding) wᵀ + bias.
TEST(RunnerCentring, AddsUpWhatTheDefinitionOfValuesGives) {
  const std::vector<int> ids = tokens_of(200);
  BiasedModel biased(KvKind::f32, 28, 32);
  const std::vector<double> sums = biased.sums_of(ids, 70);
  const auto tensor = [&](const char* name) { return biased.model.tensors.at(name); };
  const std::vector<float> table = tensor("model.embed_tokens.weight"),
                           w = tensor("model.layers.0.self_attn.v_proj.weight"),
                           bias = tensor("model.layers.0.self_attn.v_proj.bias"),
                           norm = tensor("model.layers.0.input_layernorm.weight");
  constexpr size_t kDim = 64;
  for (size_t row = 0; row < bias.size(); ++row) {
    double expected = 0;
    for (size_t t = 70; t < ids.size(); ++t) {
      const float* x = table.data() + static_cast<size_t>(ids[t]) * kDim;
      double squares = 0, product = 0;
      for (size_t i = 0; i < kDim; ++i) {
        squares += static_cast<double>(x[i]) * x[i];
        product += static_cast<double>(x[i]) * norm[i] * w[row * kDim + i];
      }
      expected += product / std::sqrt(squares / kDim + biased.model.config.norm_eps) + bias[row];
    }
    EXPECT_NEAR(sums[bias.size() + row], expected, 2e-3) << row;
  }
}

TEST(RunnerCentring, AddsUpTheSameAtEverySplit) {
  const std::vector<int> ids = tokens_of(150);
  const std::vector<double> whole = BiasedModel(KvKind::f32, 28, 32).sums_of(ids, 64);
  for (const int tp : {2, 4}) {  // four ranks hold each of two heads twice
    const std::vector<double> sums = BiasedModel(KvKind::f32, 28, 32, nullptr, tp).sums_of(ids, 64);
    for (size_t i = 0; i < whole.size(); ++i) ASSERT_NEAR(sums[i], whole[i], 1e-2) << "tp " << tp << ", " << i;
  }
}

/// Pairs 28 to 31 turn by an eighth of a radian in 400 tokens: their mean is the bias. Pairs 0 to 3 turn once in 6 to
/// 20 tokens: their mean is next to nothing, so such a model wants more bits for its keys.
TEST(RunnerCentring, TakesTheBiasOfKeysThatHardlyTurn) {
  const std::vector<int> ids = tokens_of(480), other = tokens_of(480, 5);
  const auto losses = [&](int first, int last) {
    BiasedModel numbers(KvKind::f32, first, last);
    const std::vector<float> exact = numbers.logits_of(ids, 100);
    const auto means = numbers.calibrate(other);
    return std::pair(largest_difference(BiasedModel(KvKind::tq4, first, last).logits_of(ids, 100), exact),
                     largest_difference(BiasedModel(KvKind::tq4, first, last, means).logits_of(ids, 100), exact));
  };
  const auto [slow_plain, slow_centred] = losses(28, 32);
  EXPECT_LT(slow_centred, slow_plain / 5);
  const auto [fast_plain, fast_centred] = losses(0, 4);
  EXPECT_GT(fast_centred, fast_plain / 2);
}

TEST(RunnerCentring, IsTheSameAtEverySplit) {
  const std::vector<int> ids = tokens_of(400);
  const auto means = BiasedModel(KvKind::f32, 28, 32).calibrate(tokens_of(300, 5));
  const std::vector<float> whole = BiasedModel(KvKind::tq8, 28, 32, means).logits_of(ids, 50);
  for (const int tp : {2, 4}) {
    EXPECT_LT(largest_difference(BiasedModel(KvKind::tq8, 28, 32, means, tp).logits_of(ids, 50), whole), 0.02f)
        << "tp " << tp;
  }
}

TEST(RunnerCentring, IsRefusedForNumbersForAnotherModelAndWhereThereIsNothingToAddUp) {
  const auto means = std::make_shared<KvMeans>(KvMeans{2, 2, 64, std::vector<float>(2 * 2 * 2 * 64)});
  EXPECT_THROW(BiasedModel(KvKind::bf16, 0, 0, means), Error);
  const auto other = std::make_shared<KvMeans>(KvMeans{1, 2, 64, std::vector<float>(2 * 2 * 64)});
  EXPECT_THROW(BiasedModel(KvKind::tq4, 0, 0, other), Error);
  BiasedModel codes(KvKind::tq4, 0, 0);
  PageTable pages(codes.runner->pool(), codes.runner->exact_pool());
  ASSERT_TRUE(pages.try_reserve(64));
  std::vector<double> sums(2 * 2 * 2 * 64);
  EXPECT_THROW(codes.runner->sum_keys_and_values(pages, 0, 64, sums), Error);
}

}  // namespace
}  // namespace firstlight

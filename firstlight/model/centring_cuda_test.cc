// SPDX-License-Identifier: Apache-2.0
// Centred codes on a GPU in the forward pass: prompts and single rows give what the CPU gives, whole and split.
#include <gtest/gtest.h>

#include <memory>

#include "firstlight/model/runner_testing.h"

namespace firstlight {
namespace {

/// Means of no calibration, far from those of the model: a result without them would be a far other one.
std::shared_ptr<const KvMeans> any_means(const ModelConfig& c) {
  auto means = std::make_shared<KvMeans>(KvMeans{c.n_layers, c.n_kv_heads, c.head_dim, {}});
  const int n = 2 * c.n_layers * c.n_kv_heads * c.head_dim;
  for (int i = 0; i < n; ++i) means->values.push_back(static_cast<float>(i * 37 % 101 - 50) / 25);
  return means;
}

/// A model whose heads codes come in: on the CPU, or rank r on the r-th GPU, if there are as many.
struct CentredModel : Fixture {
  CentredModel(KvKind kind, int tp, Device::Kind where, bool centred = true) : Fixture(tp, small_code_config(), 256) {
    runner.reset();
    if (where == Device::Kind::cuda) move_to_gpus(weights);
    options.kv = kind;
    options.n_exact_pages = exact_pages_for(1, options.max_batch_tokens, options.n_pages);
    if (centred) options.means = any_means(model.config);
    options.make_ops = nullptr;
    runner = make_runner(model.config, weights, options);
  }

  /// Of the last 60 tokens: a prompt's, then 10 single ones.
  std::vector<float> last_logits(const std::vector<int>& ids) {
    PageTable pages(runner->pool(), runner->exact_pool());
    EXPECT_TRUE(pages.try_reserve(std::ssize(ids)));
    std::vector<float> all, step;
    for (int64_t at = 0, n = std::ssize(ids) - 10; at < std::ssize(ids); at += n, n = 1) {
      const SequenceChunk piece{std::span(ids).subspan(static_cast<size_t>(at), static_cast<size_t>(n)), at, &pages,
                                static_cast<int>(std::min<int64_t>(n, 50))};
      runner->forward({&piece, 1}, step);
      pages.release_exact(at + n);
      all.insert(all.end(), step.begin(), step.end());
    }
    return all;
  }
};

class CentringCuda : public testing::Test {
 protected:
  void SetUp() override {
    if (gpus().names.empty()) GTEST_SKIP() << "no GPU: " << gpus().why_none;
  }
  static constexpr Device::Kind kCpu = Device::Kind::cpu, kGpu = Device::Kind::cuda;
};

TEST_F(CentringCuda, GivesTheLogitsOfTheCpu) {
  const std::vector<int> ids = tokens_of(450);
  for (const KvKind kind : {KvKind::tq8, KvKind::tq4, KvKind::k4v3}) {
    const std::vector<float> cpu = CentredModel(kind, 1, kCpu).last_logits(ids);
    for (const int tp : {1, 2}) {
      EXPECT_LT(largest_difference(CentredModel(kind, tp, kGpu).last_logits(ids), cpu), 0.1f)
          << to_string(kind) << ", tp " << tp;
    }
  }
}

/// Codes of 8 bits lose next to nothing, whatever is subtracted before.
TEST_F(CentringCuda, ChangesNoResult) {
  const std::vector<int> ids = tokens_of(450);
  const std::vector<float> plain = CentredModel(KvKind::tq8, 1, kGpu, false).last_logits(ids);
  EXPECT_LT(largest_difference(CentredModel(KvKind::tq8, 1, kGpu).last_logits(ids), plain), 0.1f);
}

}  // namespace
}  // namespace firstlight

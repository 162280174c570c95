// SPDX-License-Identifier: Apache-2.0
// Losses of KV caches against the same figures worked out plainly.
#include "firstlight/model/kv_quality.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <random>

#include "firstlight/base/error.h"

namespace firstlight {
namespace {

constexpr int kVocab = 37;

/// Row p of a table of logits for the token at position p, whatever the tokens are.
class TableRunner final : public Runner {
 public:
  TableRunner(std::vector<std::vector<float>> rows) : rows_(std::move(rows)) { config_.vocab_size = kVocab; }
  void forward(std::span<const SequenceChunk> batch, std::vector<float>& logits) override {
    logits.clear();
    const SequenceChunk& chunk = batch[0];
    const auto end = static_cast<size_t>(chunk.position) + chunk.tokens.size();
    for (size_t p = end - static_cast<size_t>(chunk.n_logits); p < end; ++p)
      logits.insert(logits.end(), rows_[p].begin(), rows_[p].end());
  }
  const ModelConfig& config() const override { return config_; }
  PagePool& pool() override { return pool_; }
  std::string_view ops_name() const override { return "a table"; }

 private:
  std::vector<std::vector<float>> rows_;
  ModelConfig config_;
  PagePool pool_{64};
};

std::vector<std::vector<float>> random_rows(size_t n, double scale, uint32_t seed,
                                            const std::vector<std::vector<float>>* near = nullptr) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<std::vector<float>> rows(n, std::vector<float>(kVocab));
  for (size_t r = 0; r < n; ++r) {
    for (size_t i = 0; i < kVocab; ++i)
      rows[r][i] = static_cast<float>(scale) * normal(random) + (near ? (*near)[r][i] : 0);
  }
  return rows;
}

/// ln of the softmax, the plain way, in long double.
std::vector<long double> log_softmax(const std::vector<float>& logits) {
  long double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<long double>(x));
  std::vector<long double> out;
  for (const float x : logits) out.push_back(static_cast<long double>(x) - std::log(sum));
  return out;
}

TEST(KvQuality, FiguresAreThoseOfTheirDefinitions) {
  constexpr KvWindow kWindow{200, 30};
  const auto exact = random_rows(200, 2, 1), found = random_rows(200, .3, 2, &exact);
  std::vector<KvColumn> columns;
  columns.push_back({"exact", 256, 0, std::make_unique<TableRunner>(exact)});
  columns.push_back({"found", 68, 0, std::make_unique<TableRunner>(found)});
  KvQuality quality(std::move(columns), kWindow);
  std::vector<int> ids;
  for (int i = 0; i < 200; ++i) ids.push_back(i * i % kVocab);
  quality.window(ids);
  quality.window(ids);

  std::vector<long double> kld;
  long double nll_exact = 0, nll_found = 0;
  int same = 0;
  for (size_t p = 30; p < 199; ++p) {  // nothing follows position 199
    const auto a = log_softmax(exact[p]), b = log_softmax(found[p]);
    long double sum = 0;
    for (size_t i = 0; i < kVocab; ++i) sum += std::exp(a[i]) * (a[i] - b[i]);
    kld.push_back(sum);
    nll_exact -= a[static_cast<size_t>(ids[p + 1])];
    nll_found -= b[static_cast<size_t>(ids[p + 1])];
    same += std::max_element(a.begin(), a.end()) - a.begin() == std::max_element(b.begin(), b.end()) - b.begin();
  }
  const auto n = static_cast<long double>(kld.size());
  const auto mean_of = [&](size_t begin, size_t end) {
    long double sum = 0;
    for (size_t i = begin; i < end; ++i) sum += kld[i];
    return static_cast<double>(sum / static_cast<long double>(end - begin));
  };
  const KvLosses& losses = quality.losses(1);
  ASSERT_EQ(losses.n(), 2 * kld.size());
  EXPECT_NEAR(losses.mean_kld(), mean_of(0, kld.size()), 1e-12);
  EXPECT_NEAR(losses.perplexity_change(quality.losses(0)),
              static_cast<double>(std::exp((nll_found - nll_exact) / n) - 1), 1e-12);
  EXPECT_NEAR(losses.perplexity(), static_cast<double>(std::exp(nll_found / n)), 1e-9);
  EXPECT_DOUBLE_EQ(losses.same_top1(), same / static_cast<double>(n));
  // Quarters of positions 30 to 199: 42.5 positions each; a part is a sixteenth, 10.625 of them.
  EXPECT_NEAR(losses.quarter_kld(0), mean_of(0, 43), 1e-12);
  EXPECT_NEAR(losses.quarter_kld(3), mean_of(128, 169), 1e-12);
  EXPECT_NEAR(losses.kld_by_window()[1][0], mean_of(0, 11), 1e-12);
  std::sort(kld.begin(), kld.end());
  EXPECT_NEAR(losses.kld_quantile(.99), static_cast<double>(kld[static_cast<size_t>(.99 * 337) / 2]), 1e-12);
  EXPECT_DOUBLE_EQ(losses.kld_quantile(1), static_cast<double>(losses.kld_quantile(.9999999999)));
  EXPECT_EQ(quality.losses(0).mean_kld(), 0);
  EXPECT_EQ(quality.losses(0).same_top1(), 1);

  const nlohmann::ordered_json json = quality.to_json();
  EXPECT_EQ(json["positions"], 338);
  EXPECT_EQ(json["kinds"][1]["kv"], "found");
  EXPECT_EQ(json["kinds"][1]["mean_kld"], losses.mean_kld());
  EXPECT_EQ(json["kinds"][1]["kld_by_window_and_position"].size(), 2u);
}

TEST(KvQuality, RefusesWindowsWithoutPositions) {
  const auto columns = [] {
    std::vector<KvColumn> one;
    one.push_back({"exact", 0, 0, std::make_unique<TableRunner>(random_rows(8, 1, 1))});
    return one;
  };
  EXPECT_THROW(KvQuality(columns(), {8, 7}), Error);
  KvQuality quality(columns(), {8, 0});
  const std::vector<int> seven(7, 1), eight(8, 1);
  EXPECT_THROW(quality.window(seven), Error);
  std::stop_source stopped;
  stopped.request_stop();
  EXPECT_THROW(quality.window(eight, stopped.get_token()), Interrupted);
}

}  // namespace
}  // namespace firstlight

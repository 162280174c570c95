// SPDX-License-Identifier: Apache-2.0
// The sampler against transformers' logits processors (tools/make_sampling_golden.py).
#include "firstlight/engine/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>

#include "firstlight/base/error.h"
#include "firstlight/ops/sampling_weight.h"

namespace firstlight {
namespace {

using nlohmann::json;

SamplingOptions options_of(const json& test) {
  const json& o = test.at("options");
  SamplingOptions out;
  out.temperature = o.at("temperature");
  out.top_k = o.at("top_k");
  out.top_p = o.at("top_p");
  out.min_p = o.at("min_p");
  out.repetition_penalty = o.at("repetition_penalty");
  out.seed = std::stoull(test.at("seed").get<std::string>());
  return out;
}

json golden() {
  std::ifstream file(std::string(FIRSTLIGHT_TESTDATA) + "/engine/sampling.json");
  EXPECT_TRUE(file.good());
  return json::parse(file);
}

TEST(Sampler, LeavesTheTokensAndProbabilitiesThatTransformersLeaves) {
  int n = 0;
  for (const json& test : golden()) {
    const SamplingOptions options = options_of(test);
    if (options.temperature == 0) continue;
    std::vector<float> logits = test.at("logits");
    const auto found = sampling_distribution(logits, options, test.at("history").get<std::vector<int>>());
    const json& expected = test.at("kept");
    ASSERT_EQ(found.size(), expected.size()) << test;
    for (size_t i = 0; i < found.size(); ++i) {
      EXPECT_EQ(found[i].first, expected[i][0].get<int>()) << test;
      // The penalty is applied in float, as transformers does on float logits: a relative error of 2^-24 of a logit
      // below 16.
      EXPECT_NEAR(found[i].second, expected[i][1].get<double>(), 1e-5 * found[i].second + 1e-12) << test;
    }
    ++n;
  }
  EXPECT_GT(n, 100);
}

TEST(Sampler, PicksTheTokenThatTheSeedAndTheDrawSay) {
  for (const json& test : golden()) {
    for (uint64_t draw = 0; draw < 4; ++draw) {
      std::vector<float> logits = test.at("logits");
      const int found = sample(logits, options_of(test), test.at("history").get<std::vector<int>>(), draw);
      EXPECT_EQ(found, test.at("picks")[draw].get<int>()) << test;
    }
  }
}

TEST(Sampler, DrawsAreRandom123sPhilox) {
  // kat_vectors of Random123, philox4x32-10: counter and key 0 → 6627e8d5 e169c58d …; all ones → 408f276d 41c83b0e …
  // (only the first is within reach: the upper counter words are always 0 here).
  EXPECT_EQ(static_cast<uint64_t>(uniform_draw(0, 0) * 0x1p53), 0xe169c58d6627e8d5u >> 11);
}

TEST(Sampler, WeightsAreTheExponentialInWholeNumbers) {
  std::vector<uint64_t> roots(sampling::kRoots);
  for (unsigned i = 0; i < sampling::kRoots; ++i) {
    roots[i] = sampling::root(i);
    EXPECT_NEAR(static_cast<double>(roots[i]) * 0x1p-63, std::exp2(-static_cast<double>(i) / 1024), 0x1p-52);
  }
  std::mt19937 random(11);
  for (const double temperature : {0.05, 0.5, 1.0, 7.0, 1e3}) {
    const sampling::Scale scale{3, sampling::Scale::powers_of(temperature)};
    EXPECT_EQ(scale.weight(3, roots.data()), uint64_t{1} << 44);
    for (int i = 0; i < 20'000; ++i) {
      const float logit = 3 - std::uniform_real_distribution<float>(0, static_cast<float>(40 * temperature))(random);
      const double exact = std::exp((static_cast<double>(logit) - 3) / temperature) * 0x1p44;
      EXPECT_NEAR(static_cast<double>(scale.weight(logit, roots.data())), exact, 1 + exact * 0x1p-46) << logit;
    }
    EXPECT_EQ(scale.weight(-std::numeric_limits<float>::infinity(), roots.data()), 0u);
  }
}

TEST(Sampler, DrawsAreUniform) {
  constexpr int kDraws = 200'000, kBins = 20;
  std::vector<int> bins(kBins);
  for (int i = 0; i < kDraws; ++i) {
    const double u = uniform_draw(42, static_cast<uint64_t>(i));
    ASSERT_TRUE(u >= 0 && u < 1);
    ++bins[static_cast<size_t>(u * kBins)];
  }
  double chi2 = 0;
  for (const int count : bins) chi2 += std::pow(count - kDraws / kBins, 2) / (kDraws / kBins);
  EXPECT_LT(chi2, 43.8) << "19 degrees of freedom, p = 0.001; the draws are fixed, so this does not flicker";
}

TEST(Sampler, FrequenciesFollowTheDistribution) {
  const std::vector<float> row{0, 1, 2, -1, 2};
  SamplingOptions options;
  options.temperature = 0.7;
  options.seed = 9;
  std::vector<float> copy = row;
  const auto distribution = sampling_distribution(copy, options, {});
  std::map<int, int> counts;
  constexpr int kDraws = 50'000;
  for (uint64_t draw = 0; draw < kDraws; ++draw) {
    copy = row;
    ++counts[sample(copy, options, {}, draw)];
  }
  for (const auto& [id, probability] : distribution) {
    EXPECT_NEAR(counts[id], probability * kDraws, 4 * std::sqrt(probability * kDraws) + 1) << id;
  }
}

TEST(Sampler, GreedyTakesTheLowestOfEqualIds) {
  std::vector<float> logits{1, 3, 3, 2, 3};
  EXPECT_EQ(sample(logits, {}, {}, 0), 1);
}

TEST(Sampler, TopPSortsNoMoreThanItNeedsAndCutsALargeRowAlike) {
  // Against a whole sort, on a row larger than the head that is sorted first.
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 2);
  for (const double p : {0.01, 0.5, 0.9, 0.99, 0.9999}) {
    std::vector<float> logits(5000);
    for (float& each : logits) each = normal(random);
    SamplingOptions options;
    options.temperature = 1;
    options.top_p = p;
    std::vector<double> weights;
    for (const float each : logits) weights.push_back(std::exp(static_cast<double>(each)));
    std::sort(weights.rbegin(), weights.rend());
    double total = 0, share = 0;
    for (const double each : weights) total += each;
    size_t expected = 0;
    while (expected < weights.size() && share < p * total) share += weights[expected++];
    EXPECT_EQ(sampling_distribution(logits, options, {}).size(), expected) << p;
  }
}

TEST(Sampler, MinusInfinityIsNeverSampled) {
  SamplingOptions options;
  options.temperature = 100;
  for (uint64_t draw = 0; draw < 200; ++draw) {
    std::vector<float> logits{-std::numeric_limits<float>::infinity(), 0, -std::numeric_limits<float>::infinity()};
    EXPECT_EQ(sample(logits, options, {}, draw), 1);
  }
}

TEST(Sampler, RowsThatAreNotNumbersAreRefused) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const double temperature : {0.0, 1.0}) {
    SamplingOptions options;
    options.temperature = temperature;
    for (const std::vector<float>& row :
         {std::vector<float>{0, NAN, 1}, {NAN, 0}, {kInfinity, 0}, {-kInfinity, -kInfinity}, {}}) {
      std::vector<float> logits = row;
      EXPECT_THROW(sample(logits, options, {}, 0), Error);
    }
  }
}

TEST(Sampler, AVeryLowTemperatureIsGreedy) {
  std::vector<float> logits{1, 1.0001f, -5};
  SamplingOptions options;
  options.temperature = 1e-30;
  EXPECT_EQ(sample(logits, options, {}, 3), 1);
}

TEST(Sampler, OptionsOutOfRangeAreRefusedByName) {
  const auto refused = [](auto change, std::string_view name) {
    SamplingOptions options;
    change(options);
    try {
      validate(options);
      ADD_FAILURE() << name;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::bad_input);
      EXPECT_NE(std::string_view(error.what()).find(name), std::string_view::npos) << error.what();
    }
  };
  refused([](SamplingOptions& o) { o.temperature = -1; }, "temperature");
  refused([](SamplingOptions& o) { o.temperature = NAN; }, "temperature");
  refused([](SamplingOptions& o) { o.top_k = -1; }, "top-k");
  refused([](SamplingOptions& o) { o.top_p = 1.5; }, "top-p");
  refused([](SamplingOptions& o) { o.min_p = -0.1; }, "min-p");
  refused([](SamplingOptions& o) { o.repetition_penalty = 0; }, "repetition penalty");
  validate(SamplingOptions{});
}

}  // namespace
}  // namespace firstlight

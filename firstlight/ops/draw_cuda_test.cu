// SPDX-License-Identifier: Apache-2.0
// Draws on a GPU: the CPU's to the bit, and within rounding those of the definition in double.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "firstlight/ops/draw_cuda.cuh"
#include "firstlight/ops/test_cuda.h"

namespace firstlight {
namespace {

using reference::kGpu;
using reference::OnGpu;
using Rows = std::vector<std::vector<float>>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

class DrawCuda : public reference::WithGpu {
 protected:
  static std::vector<int> on_gpu(const Rows& rows, std::span<const Draw> draws) {
    std::vector<float> flat;
    for (const auto& row : rows) flat.insert(flat.end(), row.begin(), row.end());
    const OnGpu logits(flat), ids(std::vector<int>(rows.size(), -7));
    cuda::DrawTables tables;
    tables.send(draws, nullptr);
    cuda::draw_rows(reinterpret_cast<float*>(logits.data()), static_cast<int>(rows[0].size()),
                    static_cast<int>(rows.size()), tables.draws(), tables.history(), reinterpret_cast<int*>(ids.data()),
                    nullptr);
    cuda::check(cudaDeviceSynchronize(), "draw");
    std::vector<int> out(rows.size());
    ids.fetch(out.data());
    logits.fetch(flat.data());  // nothing around the rows was written
    return out;
  }
  static std::vector<int> on_cpu(Rows rows, std::span<const Draw> draws) {
    std::vector<int> out;
    for (size_t i = 0; i < rows.size(); ++i) out.push_back(draw_from(rows[i], draws[i]));
    return out;
  }
  static void compare(const Rows& rows, std::span<const Draw> draws) {
    const std::vector<int> gpu = on_gpu(rows, draws), cpu = on_cpu(rows, draws);
    for (size_t i = 0; i < rows.size(); ++i) {
      const SamplingOptions& o = draws[i].options;
      ASSERT_EQ(gpu[i], cpu[i]) << "row " << i << " of " << rows[i].size() << ", temperature " << o.temperature
                                << ", top-k " << o.top_k << ", top-p " << o.top_p << ", min-p " << o.min_p
                                << ", penalty " << o.repetition_penalty << ", draw " << draws[i].number;
    }
  }
};

/// Every filter alone and with others, in turn.
SamplingOptions options_of(size_t i, std::mt19937_64& random) {
  SamplingOptions o;
  o.temperature = std::array{1.0, 0.7, 0.0, 2.5, 1e-30, 100.0, 0.01}[i % 7];
  o.top_k = std::array{0, 0, 50, 1, 100'000, 5, 0, 1'000'000, 700}[i % 9];
  o.top_p = std::array{1.0, 0.95, 0.5, 1.0, 0.0, 0.999999, 1e-9, 0.1}[i % 8];
  o.min_p = std::array{0.0, 0.0, 0.05, 0.0, 1.0}[i % 5];
  o.repetition_penalty = std::array{1.0, 1.3, 1.0, 0.5}[i % 4];
  o.seed = random();
  return o;
}

std::vector<int> history_of(size_t n, int vocab_size, std::mt19937_64& random) {
  std::vector<int> ids(n);
  for (int& id : ids) id = static_cast<int>(random() % static_cast<uint64_t>(vocab_size));
  for (size_t i = 0; i < n / 3; ++i) ids[i] = ids[n - 1 - i];  // some twice
  return ids;
}

TEST_F(DrawCuda, DrawsWhatTheCpuDraws) {
  std::mt19937_64 random(1);
  for (const int vocab_size : {1, 2, 5, 88, 1000, 49'152, 128'256}) {
    const size_t n = 32;
    Rows rows(n, std::vector<float>(static_cast<size_t>(vocab_size)));
    std::vector<std::vector<int>> histories;
    for (size_t i = 0; i < n; ++i) {
      std::normal_distribution<float> normal(static_cast<float>(i) - 16, 0.5f + static_cast<float>(i % 5));
      for (float& x : rows[i]) x = normal(random);
      histories.push_back(history_of(i * 40, vocab_size, random));
    }
    for (size_t first = 0; first < 10 * 9; first += 9) {
      std::vector<Draw> draws;
      for (size_t i = 0; i < n; ++i) draws.push_back({options_of(first * n + i, random), histories[i], first});
      compare(rows, draws);
      if (HasFatalFailure()) return;
    }
  }
}

/// Every filter on few rows of few tokens, where what goes wrong is easily seen.
TEST_F(DrawCuda, DrawsFromAFewShortRowsWhatTheCpuDraws) {
  std::mt19937_64 random(5);
  constexpr int kVocab = 700;
  for (size_t first = 0; first < 36; first += 4) {
    Rows rows(4, std::vector<float>(kVocab));
    const std::vector<int> history = history_of(40, kVocab, random);
    std::vector<Draw> draws;
    for (size_t i = 0; i < rows.size(); ++i) {
      for (float& x : rows[i]) x = static_cast<float>(random() % 64) / 8;  // many are equal
      draws.push_back({options_of(first + i, random), history, first});
    }
    compare(rows, draws);
    if (HasFatalFailure()) return;
  }
}

/// As few accesses to shared memory as every filter takes, for tools that look at each of them.
TEST_F(DrawCuda, DrawsFromOneShortRowWhatTheCpuDraws) {
  std::mt19937_64 random(6);
  Rows rows(1, std::vector<float>(300));
  for (float& x : rows[0]) x = static_cast<float>(random() % 64) / 8;
  const std::vector<int> history{3, 299, 3};
  for (const SamplingOptions& options : {SamplingOptions{.temperature = 0.8, .repetition_penalty = 1.3, .seed = 1},
                                         SamplingOptions{.temperature = 0.8, .top_k = 20, .top_p = 0.9, .seed = 2}}) {
    compare(rows, std::vector<Draw>{{options, history, 1}});
  }
}

TEST_F(DrawCuda, CutsEqualLogitsAsTheCpuDoes) {
  std::mt19937_64 random(2);
  for (const int n_values : {1, 2, 7, 40}) {
    const int vocab_size = 20'011;
    Rows rows(24, std::vector<float>(vocab_size));
    for (auto& row : rows) {
      for (float& x : row) x = static_cast<float>(random() % static_cast<uint64_t>(n_values)) / 4 - 1;
      for (size_t i = 0; i < row.size(); i += 3) row[i] = row[i] == 0 ? -0.0f : row[i];
    }
    for (uint64_t number = 0; number < 20; ++number) {
      std::vector<Draw> draws;
      for (size_t i = 0; i < rows.size(); ++i) {
        SamplingOptions o = options_of(i + number * 24, random);
        o.top_p = static_cast<double>(random() % 1000) / 1000;
        draws.push_back({o, {}, number});
        draws.back().options.repetition_penalty = 1;
      }
      compare(rows, draws);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(DrawCuda, RefusesRowsThatAreNotNumbersAndNoOthers) {
  std::mt19937_64 random(3);
  Rows rows(8, std::vector<float>(128'256));
  for (auto& row : rows) {
    for (float& x : row) x = static_cast<float>(random() % 1000) / 100;
  }
  rows[0][77'777] = std::nanf("");
  rows[1][128'255] = kInfinity;
  std::fill(rows[2].begin(), rows[2].end(), -kInfinity);
  for (size_t i = 0; i < rows[3].size(); ++i) rows[3][i] = i == 100'000 || i == 3 ? 1.0f : -kInfinity;
  rows[4][0] = -std::nanf("");
  for (size_t i = 5; i < 8; ++i) std::fill(rows[i].begin() + 10, rows[i].end() - 10, -kInfinity);
  const std::vector<int> history{77'777, 128'255, 3, 100'000, 0};
  for (uint64_t number = 0; number < 12; ++number) {
    std::vector<Draw> draws;
    for (size_t i = 0; i < rows.size(); ++i) draws.push_back({options_of(i + number * 5, random), history, number});
    const std::vector<int> got = on_gpu(rows, draws);
    EXPECT_EQ(got[0], -1);
    EXPECT_EQ(got[1], -1);
    EXPECT_EQ(got[2], -1);
    EXPECT_TRUE(got[3] == 3 || got[3] == 100'000) << got[3];
    EXPECT_EQ(got[4], -1);
    compare(rows, draws);
  }
}

/// From the definition, in double, with std::exp and whole sorts: the token's place on [0, 1) holds the draw.
TEST_F(DrawCuda, FallsWhereTheDefinitionInDoublePutsIt) {
  std::mt19937_64 random(4);
  constexpr size_t kVocab = 32'000;
  for (size_t round = 0; round < 40; ++round) {
    Rows rows(1, std::vector<float>(kVocab));
    std::normal_distribution<float> normal(0, 3);
    for (float& x : rows[0]) x = normal(random);
    SamplingOptions o{.temperature = 0.3 + 0.2 * static_cast<double>(round % 8)};
    o.top_k = round % 3 == 0 ? 40 : 0;
    o.top_p = round % 2 == 0 ? 0.9 : 1;
    o.min_p = round % 5 == 0 ? 0.02 : 0;
    o.seed = random();
    const std::vector<Draw> draws{{o, {}, round}};
    const auto picked = static_cast<size_t>(on_gpu(rows, draws)[0]);
    std::vector<size_t> order(kVocab);
    std::iota(order.begin(), order.end(), size_t{0});
    const auto& row = rows[0];
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return row[a] > row[b]; });
    std::vector<double> weights(kVocab);
    double total = 0, share = 0;
    for (size_t i = 0; i < kVocab && (o.top_k == 0 || i < static_cast<size_t>(o.top_k)); ++i) {
      const double apart = static_cast<double>(row[order[i]]) - row[order[0]];
      total += weights[order[i]] = std::exp(apart / o.temperature);
    }
    for (const size_t id : order) {
      const double weight = weights[id];
      if ((o.top_p < 1 && share >= o.top_p * total) || weight < o.min_p) weights[id] = 0;
      share += weight;
    }
    total = std::accumulate(weights.begin(), weights.end(), 0.0);
    const double before =
        std::accumulate(weights.begin(), weights.begin() + static_cast<std::ptrdiff_t>(picked), 0.0) / total;
    const double drawn = uniform_draw(o.seed, round);
    EXPECT_GE(drawn, before - 1e-8) << "round " << round;
    EXPECT_LT(drawn, before + weights[picked] / total + 1e-8) << "round " << round;
    EXPECT_GT(weights[picked], 0) << "round " << round;
  }
}

}  // namespace
}  // namespace firstlight

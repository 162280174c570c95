// SPDX-License-Identifier: Apache-2.0
// What a KV cache loses: each kind's next-token distributions beside those of an f32 cache, over the same tokens and
// weights, in windows.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "firstlight/base/thread_pool.h"
#include "firstlight/model/runner.h"

namespace firstlight {

/// The softmax of one row of logits, in double.
class Distribution {
 public:
  void set(std::span<const float> logits);
  size_t top() const noexcept { return top_; }  ///< the likeliest id, the lowest among equals
  double log_p(size_t id) const { return log_p_[id]; }
  /// Kullback-Leibler divergence from this to `other`, Σ p (ln p − ln q), in nats. Of one vocabulary.
  double divergence_to(const Distribution& other) const;

 private:
  std::vector<double> log_p_, p_;
  size_t top_ = 0;
};

/// One position's loss. `next`: the token that follows.
struct KvScore {
  KvScore() = default;
  KvScore(const Distribution& exact, const Distribution& found, size_t next)
      : kld(exact.divergence_to(found)), log_p_next(found.log_p(next)), same_top(exact.top() == found.top()) {}
  double kld = 0, log_p_next = 0;
  bool same_top = false;
};

/// Windows of `length` tokens, scored from position `skip` on: what is near the beginning is read exactly anyway.
struct KvWindow {
  int64_t length = 2048, skip = 256;
};

/// One cache's losses over all scored positions. The figures are of one position at least.
class KvLosses {
 public:
  static constexpr size_t kParts = 16;  ///< of a window, that the divergence is told of
  void begin_window() { of_window_.emplace_back(); }
  /// A position of the current window, which lies in `part`.
  void add(const KvScore& score, size_t part);

  size_t n() const noexcept { return kld_.size(); }
  double perplexity() const;
  double perplexity_change(const KvLosses& exact) const;  ///< 0.01: one per cent more than `exact`'s
  double same_top1() const;                               ///< share of positions with the same likeliest token
  double mean_kld() const;
  double kld_quantile(double q) const;     ///< of all positions, q in [0, 1]: the value at rank floor(q (n − 1))
  double quarter_kld(size_t which) const;  ///< mean over a quarter of the windows, 0 to 3
  /// Mean divergence of each part of each window, 0 where a part has no position.
  std::vector<std::array<double, kParts>> kld_by_window() const;

 private:
  struct Mean {
    double sum = 0;
    int64_t n = 0;
  };
  std::vector<double> kld_;
  std::vector<std::array<Mean, kParts>> of_window_;
  int64_t same_top_ = 0;
  double nll_ = 0;
};

/// A cache that is compared. `bytes`: of a key and a value of one head; `distortion`: relative mean squared error of a
/// vector, where that is known, else 0.
struct KvColumn {
  std::string name;
  double bytes = 0, distortion = 0;
  std::unique_ptr<Runner> runner;
};

/// A column of a kind that `weights`, which outlive it, are run with: one window at a time, kKvQualityChunk tokens a
/// pass. `means` as RunnerOptions has it, n_threads 0: usable cores. Throws as make_runner().
constexpr int kKvQualityChunk = 128;
KvColumn make_kv_column(const ModelConfig& config, std::vector<RankWeights>& weights, KvKind kind, int64_t window,
                        std::shared_ptr<const KvMeans> means = nullptr, int n_threads = 0);

/// Runs the same windows through all columns, side by side; the first column is what the others are compared with.
class KvQuality {
 public:
  /// n_threads: that look at logits, 0: usable cores.
  KvQuality(std::vector<KvColumn> columns, KvWindow window, int n_threads = 0);
  /// The next window, `length` ids. Blocks for its passes; throws Interrupted between two of them, and what they throw.
  void window(std::span<const int> ids, const std::stop_token& stop = {});
  const std::vector<KvColumn>& columns() const noexcept { return columns_; }
  const KvLosses& losses(size_t column) const { return losses_[column]; }
  /// {"positions", "window", "skip", "head_dim", "kinds": [{"kv", "bytes", "mse", "perplexity_change", "mean_kld",
  /// "p99_kld", "p999_kld", "same_top1", "quarter_kld", "kld_by_window_and_position"}]}. Behind one window at least.
  nlohmann::ordered_json to_json() const;

 private:
  void score(size_t column, std::span<const int> ids, int64_t first, size_t n);

  const KvWindow window_;
  std::vector<KvColumn> columns_;
  std::vector<KvLosses> losses_;
  ThreadPool pool_;  // a row of logits is an exponential a word of the vocabulary, for each column
  std::vector<float> logits_;
  std::vector<Distribution> exact_, found_;  // of each row; of each thread
  std::vector<KvScore> scores_;
};

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
#include "firstlight/model/kv_quality.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"

namespace firstlight {

void Distribution::set(std::span<const float> logits) {
  top_ = static_cast<size_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  p_.resize(logits.size());
  log_p_.resize(logits.size());
  double sum = 0;
  const auto most = static_cast<double>(logits[top_]);
  for (size_t i = 0; i < logits.size(); ++i) sum += p_[i] = std::exp(static_cast<double>(logits[i]) - most);
  const double norm = most + std::log(sum);
  for (size_t i = 0; i < logits.size(); ++i) {
    log_p_[i] = static_cast<double>(logits[i]) - norm;
    p_[i] /= sum;
  }
}

double Distribution::divergence_to(const Distribution& other) const {
  double sum = 0;
  for (size_t i = 0; i < p_.size(); ++i) sum += p_[i] * (log_p_[i] - other.log_p_[i]);
  return sum;
}

void KvLosses::add(const KvScore& score, size_t part) {
  kld_.push_back(score.kld);
  Mean& mean = of_window_.back()[part];
  mean.sum += score.kld;
  ++mean.n;
  same_top_ += score.same_top ? 1 : 0;
  nll_ -= score.log_p_next;
}

double KvLosses::perplexity() const { return std::exp(nll_ / static_cast<double>(n())); }

double KvLosses::perplexity_change(const KvLosses& exact) const {
  return std::exp((nll_ - exact.nll_) / static_cast<double>(n())) - 1;
}

double KvLosses::same_top1() const { return static_cast<double>(same_top_) / static_cast<double>(n()); }

double KvLosses::mean_kld() const { return std::accumulate(kld_.begin(), kld_.end(), 0.0) / static_cast<double>(n()); }

double KvLosses::kld_quantile(double q) const {
  std::vector<double> values = kld_;
  const auto at = values.begin() + static_cast<std::ptrdiff_t>(q * static_cast<double>(n() - 1));
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

double KvLosses::quarter_kld(size_t which) const {
  Mean all;
  for (const auto& parts : of_window_) {
    for (size_t i = which * kParts / 4; i < (which + 1) * kParts / 4; ++i) all.sum += parts[i].sum, all.n += parts[i].n;
  }
  return all.n > 0 ? all.sum / static_cast<double>(all.n) : 0;
}

std::vector<std::array<double, KvLosses::kParts>> KvLosses::kld_by_window() const {
  std::vector<std::array<double, kParts>> out(of_window_.size());
  for (size_t w = 0; w < out.size(); ++w) {
    for (size_t i = 0; i < kParts; ++i) {
      const Mean& mean = of_window_[w][i];
      out[w][i] = mean.n > 0 ? mean.sum / static_cast<double>(mean.n) : 0;
    }
  }
  return out;
}

KvColumn make_kv_column(const ModelConfig& config, std::vector<RankWeights>& weights, KvKind kind, int64_t window,
                        std::shared_ptr<const KvMeans> means, int n_threads) {
  RunnerOptions options;
  options.kv = kind;
  options.max_batch_tokens = kKvQualityChunk;
  options.n_threads = n_threads;
  options.n_pages = window / kPageTokens + 1;
  options.n_exact_pages = is_compressed(kind) ? exact_pages_for(1, kKvQualityChunk, options.n_pages) : 0;
  options.means = std::move(means);
  KvColumn column;
  column.name = str(to_string(kind), options.means ? "+centred" : "");
  column.bytes = static_cast<double>(kv_page_bytes(kind, 1, config.head_dim)) / kPageTokens;
  column.runner = make_runner(config, weights, options);
  return column;
}

KvQuality::KvQuality(std::vector<KvColumn> columns, KvWindow window, int n_threads)
    : window_(window),
      columns_(std::move(columns)),
      losses_(columns_.size()),
      pool_(n_threads > 0 ? n_threads : usable_cores()),
      exact_(static_cast<size_t>(kKvQualityChunk)),
      found_(static_cast<size_t>(pool_.n_threads())),
      scores_(static_cast<size_t>(kKvQualityChunk)) {
  if (columns_.empty()) throw Error(ErrorKind::bug, "no KV cache to compare with");
  if (window.skip < 0 || window.length < window.skip + 2)
    throw Error(ErrorKind::bad_input, str("windows of ", window.length, " tokens, scored from position ", window.skip,
                                          " on: expected two positions at least"));
}

void KvQuality::window(std::span<const int> ids, const std::stop_token& stop) {
  if (std::ssize(ids) != window_.length)
    throw Error(ErrorKind::bug, str("a window of ", ids.size(), " tokens, expected ", window_.length));
  std::vector<PageTable> tables;
  for (const KvColumn& column : columns_) {
    tables.emplace_back(column.runner->pool(), column.runner->exact_pool());
    if (!tables.back().try_reserve(window_.length))
      throw Error(ErrorKind::bug, str(column.name, ": no pages for a window of ", window_.length, " tokens"));
  }
  for (KvLosses& losses : losses_) losses.begin_window();
  for (int64_t begin = 0; begin < window_.length; begin += kKvQualityChunk) {
    const int64_t end = std::min(begin + kKvQualityChunk, window_.length), first = std::max(begin, window_.skip);
    const auto n_rows = static_cast<size_t>(std::max<int64_t>(0, end - first));
    const size_t n_scored =
        end == window_.length && n_rows > 0 ? n_rows - 1 : n_rows;  // nothing follows the last token
    const auto tokens = ids.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
    for (size_t k = 0; k < columns_.size(); ++k) {
      if (stop.stop_requested()) throw Interrupted();
      const SequenceChunk chunk{tokens, begin, &tables[k], static_cast<int>(n_rows)};
      columns_[k].runner->forward({&chunk, 1}, logits_);
      tables[k].release_exact(end);
      score(k, ids, first, n_scored);
    }
  }
}

/// Rows of logits_ from that of position `first` on.
void KvQuality::score(size_t column, std::span<const int> ids, int64_t first, size_t n) {
  const auto vocab = static_cast<size_t>(columns_[column].runner->config().vocab_size);
  pool_.for_range(static_cast<int64_t>(n), 1, [&](int64_t begin, int64_t end, int thread) {
    Distribution& found = found_[static_cast<size_t>(thread)];
    for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
      const std::span<const float> logits(logits_.data() + i * vocab, vocab);
      if (column == 0) exact_[i].set(logits);
      found.set(logits);
      scores_[i] = {exact_[i], found, static_cast<size_t>(ids[static_cast<size_t>(first) + i + 1])};
    }
  });
  for (size_t i = 0; i < n; ++i) {
    const int64_t behind = first + static_cast<int64_t>(i) - window_.skip;
    losses_[column].add(scores_[i], static_cast<size_t>(behind * static_cast<int64_t>(KvLosses::kParts) /
                                                        (window_.length - window_.skip)));
  }
}

nlohmann::ordered_json KvQuality::to_json() const {
  nlohmann::ordered_json kinds;
  for (size_t k = 0; k < losses_.size(); ++k) {
    const KvLosses& losses = losses_[k];
    kinds.push_back(
        {{"kv", columns_[k].name},
         {"bytes", columns_[k].bytes},
         {"mse", columns_[k].distortion},
         {"perplexity_change", losses.perplexity_change(losses_[0])},
         {"mean_kld", losses.mean_kld()},
         {"p99_kld", losses.kld_quantile(.99)},
         {"p999_kld", losses.kld_quantile(.999)},
         {"same_top1", losses.same_top1()},
         {"quarter_kld", {losses.quarter_kld(0), losses.quarter_kld(1), losses.quarter_kld(2), losses.quarter_kld(3)}},
         {"kld_by_window_and_position", losses.kld_by_window()}});
  }
  return {{"positions", losses_[0].n()},
          {"window", window_.length},
          {"skip", window_.skip},
          {"head_dim", columns_[0].runner->config().head_dim},
          {"kinds", kinds}};
}

}  // namespace firstlight

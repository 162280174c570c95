// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <chrono>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/cli/bench_kv.h"

namespace firstlight::cli {

namespace {

constexpr int kChunk = 512;
constexpr int kUncounted = 3;
/// Steps of a kind behind one another, and one before them that is not counted: the threads of the kind before may spin
/// on their cores for a while (16 threads, tq4 behind tq8 step by step: 15.7 ms instead of 6.1).
constexpr int kInTurn = 4;

int n_turns(int n_steps) { return (n_steps + kInTurn - 1) / kInTurn; }

/// One kind's runner and its sequences, which all hold the same number of made-up tokens.
class Sequences {
 public:
  Sequences(const ModelConfig& config, std::vector<RankWeights>& weights, KvKind kind, int batch, int64_t most_tokens,
            int n_threads)
      : kind_(kind), vocab_size_(config.vocab_size) {
    RunnerOptions options;
    options.kv = kind;
    options.n_threads = n_threads;
    options.max_batch_tokens = std::max(kChunk, batch);
    const int64_t pages_each = (most_tokens + kPageTokens - 1) / kPageTokens;
    options.n_pages = batch * pages_each;
    if (is_compressed(kind)) options.n_exact_pages = exact_pages_for(batch, options.max_batch_tokens, options.n_pages);
    runner_ = make_runner(config, weights, options);
    for (int i = 0; i < batch; ++i) {
      tables_.emplace_back(runner_->pool(), runner_->exact_pool());
      if (!tables_.back().try_reserve(pages_each * kPageTokens)) throw Error(ErrorKind::bug, "no pages for a sequence");
    }
  }

  KvKind kind() const noexcept { return kind_; }
  /// Prompts up to `context` tokens each, one after another. Seconds.
  double extend(int64_t context, const std::stop_token& stop) {
    const auto begin = std::chrono::steady_clock::now();
    for (PageTable& table : tables_) {
      for (int64_t at = n_tokens_; at < context;) {
        if (stop.stop_requested()) throw Interrupted();
        const int64_t n = std::min<int64_t>(kChunk, context - at);
        make_ids(at, n);
        const SequenceChunk chunk{ids_, at, &table, 0};
        runner_->forward({&chunk, 1}, logits_);
        at += n;
        table.release_exact(at);
      }
    }
    n_tokens_ = context;
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }
  /// A token of each. Seconds.
  double step() {
    make_ids(n_tokens_, std::ssize(tables_));
    std::vector<SequenceChunk> chunks;
    for (size_t i = 0; i < tables_.size(); ++i)
      chunks.push_back({std::span<const int>(ids_).subspan(i, 1), n_tokens_, &tables_[i], 1});
    const auto begin = std::chrono::steady_clock::now();
    runner_->forward_greedy(chunks, likeliest_);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    ++n_tokens_;
    for (PageTable& table : tables_) table.release_exact(n_tokens_);
    return seconds;
  }

 private:
  void make_ids(int64_t seed, int64_t n) {
    ids_.clear();
    for (int64_t i = 0; i < n; ++i) ids_.push_back(static_cast<int>((seed + i) * 7919 % vocab_size_));
  }

  KvKind kind_;
  int vocab_size_;
  std::unique_ptr<Runner> runner_;
  std::vector<PageTable> tables_;
  int64_t n_tokens_ = 0;
  std::vector<int> ids_;
  std::vector<float> logits_;
  std::vector<Likeliest> likeliest_;
};

}  // namespace

int64_t tokens_of_steps(int n_steps) { return kUncounted + n_turns(n_steps) + n_steps; }

KvSpeed measure_kv_speed(const Context& context, const ModelConfig& config, std::vector<RankWeights>& weights,
                         const KvSpeedOptions& options) {
  KvSpeed speed;
  std::vector<int64_t> contexts = options.contexts;
  std::sort(contexts.begin(), contexts.end());
  ProgressBar bar(context);
  uint64_t done = 0;
  const uint64_t all = options.batches.size() * contexts.size() * options.kinds.size();
  for (const int batch : options.batches) {
    const int64_t most = contexts.back() + tokens_of_steps(options.n_steps);
    std::vector<Sequences> all_kinds;
    for (const KvKind kind : options.kinds) {
      try {
        all_kinds.emplace_back(config, weights, kind, batch, most, options.n_threads);
      } catch (const Error& error) {
        if (error.kind() != ErrorKind::out_of_memory) throw;
        speed.left_out.push_back(str(to_string(kind), ", ", batch, " sequences of ", contexts.back(),
                                     " tokens: no room beside the others (", error.what(), ")"));
      }
    }
    int64_t before = 0;
    for (const int64_t n_tokens : contexts) {
      std::vector<std::vector<double>> seconds(all_kinds.size());
      for (Sequences& one : all_kinds) {
        bar.update(str("prompts of ", n_tokens), done++, all);
        speed.prompts.push_back({one.kind(), batch, before, n_tokens, one.extend(n_tokens, context.stop)});
      }
      for (Sequences& one : all_kinds) {
        for (int i = 0; i < kUncounted; ++i) one.step();
      }
      for (int turn = 0; turn < n_turns(options.n_steps); ++turn) {
        for (size_t k = 0; k < all_kinds.size(); ++k) {
          if (context.stop.stop_requested()) throw Interrupted();
          all_kinds[k].step();
          const int n = std::min(kInTurn, options.n_steps - turn * kInTurn);
          for (int i = 0; i < n; ++i) seconds[k].push_back(all_kinds[k].step());
        }
      }
      for (size_t k = 0; k < all_kinds.size(); ++k)
        speed.steps.push_back({all_kinds[k].kind(), batch, n_tokens, Spread(seconds[k])});
      before = n_tokens + tokens_of_steps(options.n_steps);
    }
  }
  bar.clear();
  return speed;
}

}  // namespace firstlight::cli

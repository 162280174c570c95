// SPDX-License-Identifier: Apache-2.0
// Ranks that are threads of this process.
#include <algorithm>
#include <cmath>
#include <utility>

#include "firstlight/comm/comm.h"
#include "firstlight/model/rank_crew.h"

namespace firstlight {
namespace {

constexpr int kPoolSpin = 4000;  // polls of a waiting thread before it sleeps: as ThreadPool's default

class ThreadCrew final : public RankCrew {
 public:
  ThreadCrew(const ModelConfig& config, std::vector<RankWeights>& weights, const RunnerOptions& options)
      : n_kv_heads_(config.n_kv_heads), crew_(static_cast<int>(weights.size()), 0) {
    const int tp = static_cast<int>(weights.size());
    const bool on_cpu = weights[0].arena.device().kind == Device::Kind::cpu;
    if (!on_cpu && usable_cores() > tp) crew_.set_spin(kPoolSpin);
    std::vector<Device> devices;
    for (const RankWeights& rank : weights) devices.push_back(rank.arena.device());
    comms_ = make_comms(devices);
    const int n_threads = on_cpu ? threads_a_rank(options, tp) : 1;
    const int spin = on_cpu ? spin_of_ranks(options, tp) : tp > 1 ? 0 : kPoolSpin;
    ranks_.resize(weights.size());
    crew_.run([&](int rank) {  // side by side: a GPU's allocations and modules take milliseconds
      const auto r = static_cast<size_t>(rank);
      ranks_[r] = std::make_unique<LlamaRank>(config, weights[r], options, *comms_[r], n_threads, spin);
    });
    picks_.resize(weights.size());
    drawn_.resize(weights.size());
  }

  void run(Batch& batch, const PassResult& result) override {
    batch.logits = result.logits;
    for (std::vector<Likeliest>& picks : picks_) picks.assign(result.likeliest.size(), {});
    for (std::vector<int>& drawn : drawn_) drawn.assign(result.drawn.size(), -1);
    try {
      crew_.run([&](int rank) { run_rank(static_cast<size_t>(rank), batch, result.draws); });
    } catch (...) {
      const std::exception_ptr cause = std::current_exception();
      try {
        comms_[0]->reset();              // the next call is a new one
      } catch (const std::exception&) {  // a device is lost: the ranks stay failed, with this cause
      }
      std::rethrow_exception(cause);
    }
    std::copy(drawn_[0].begin(), drawn_[0].end(), result.drawn.begin());
    for (size_t i = 0; i < result.likeliest.size(); ++i) {
      result.likeliest[i] = picks_[0][i];
      for (size_t r = 1; r < picks_.size(); ++r) result.likeliest[i] = likelier(result.likeliest[i], picks_[r][i]);
    }
  }

  std::vector<RankPages> rank_pages() const override {
    std::vector<RankPages> pages;
    for (const auto& rank : ranks_) pages.push_back(rank->pages());
    return pages;
  }
  void sum_keys_and_values(std::span<const int32_t> pages, int64_t begin, int64_t end,
                           std::span<double> sums) override {
    const int tp = static_cast<int>(ranks_.size());
    for (int r = 0; r < tp; ++r) {  // where ranks outnumber key/value heads, the first that holds one speaks for it
      if (r * n_kv_heads_ % tp == 0) ranks_[static_cast<size_t>(r)]->sum_keys_and_values(pages, begin, end, sums);
    }
  }
  bool draws() const override { return ranks_.size() == 1 || ranks_[0]->pages().device.kind != Device::Kind::cpu; }
  std::string_view ops_name() const override { return ranks_[0]->ops_name(); }
  std::string_view comm_path() const override { return comms_[0]->path(); }

 private:
  void run_rank(size_t rank, const Batch& batch, std::span<const Draw> draws) {
    Comm& comm = *comms_[rank];
    try {
      ranks_[rank]->forward(batch, {picks_[rank], draws, drawn_[rank]});
    } catch (...) {
      comm.fail(std::current_exception());
      comm.check();  // throws the first cause, on every rank the same
    }
  }

  const int n_kv_heads_;
  std::vector<std::unique_ptr<Comm>> comms_;
  std::vector<std::unique_ptr<LlamaRank>> ranks_;
  std::vector<std::vector<Likeliest>> picks_;  // of each rank, in a greedy pass
  std::vector<std::vector<int>> drawn_;        // of each rank, in one that draws: all the same
  ThreadPool crew_;                            // one thread a rank, rank 0 on the caller's
};

}  // namespace

int threads_a_rank(const RunnerOptions& options, int tp) {
  return std::max(1, (options.n_threads > 0 ? options.n_threads : usable_cores()) / tp);
}

int spin_of_ranks(const RunnerOptions& options, int tp) {
  return tp > 1 || options.n_threads > usable_cores() ? 0 : kPoolSpin;
}

Likeliest likelier(const Likeliest& a, const Likeliest& b) {
  const auto is_wrong = [](const Likeliest& x) { return x.id < 0 && x.logit != -INFINITY; };
  if (is_wrong(a) || is_wrong(b)) return is_wrong(a) ? a : b;
  if (a.logit != b.logit) return a.logit > b.logit ? a : b;
  return a.id < b.id ? a : b;
}

std::unique_ptr<RankCrew> make_thread_crew(const ModelConfig& config, std::vector<RankWeights>& weights,
                                           const RunnerOptions& options) {
  return std::make_unique<ThreadCrew>(config, weights, options);
}

}  // namespace firstlight

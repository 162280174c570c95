// SPDX-License-Identifier: Apache-2.0
// The ranks of a runner, wherever they run: threads of this process, or one process each.
#pragma once
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "firstlight/model/llama_rank.h"

namespace firstlight {

/// What one pass is to bring: the logits of the wanted rows, or what is drawn from them, or …
struct PassResult {
  Matrix<float> logits = {};         ///< [wanted rows, vocab_size]; no rows if not asked for
  std::span<const Draw> draws = {};  ///< where draws() says so
  std::span<int> drawn = {};
  std::span<Likeliest> likeliest = {};  ///< … of each wanted row the likeliest token; empty if not asked for
};

/// One run() at a time. When a rank fails, run() throws the first cause.
class RankCrew {
 public:
  virtual ~RankCrew() = default;
  /// Every rank computes `batch` (its logits are the crew's to set).
  virtual void run(Batch& batch, const PassResult& result) = 0;
  /// Whether run() draws: a single rank, or ranks on GPUs. Else the caller draws from the logits.
  virtual bool draws() const = 0;
  /// As Runner::rank_pages(); none where ranks are processes.
  virtual std::vector<RankPages> rank_pages() const { return {}; }
  /// As Runner::sum_keys_and_values(), whose arguments are right.
  virtual void sum_keys_and_values(std::span<const int32_t> pages, int64_t begin, int64_t end,
                                   std::span<double> sums) = 0;
  /// As Runner::finish().
  virtual void finish() {}
  virtual std::string_view ops_name() const = 0;
  virtual std::string_view comm_path() const = 0;
};

/// A thread for each of `weights`, rank 0 on the caller's; on GPUs or on the CPU.
std::unique_ptr<RankCrew> make_thread_crew(const ModelConfig& config, std::vector<RankWeights>& weights,
                                           const RunnerOptions& options);
/// Rank 0 here, of which `weights` alone are; the others in follow_passes() in processes of their own, with which
/// options.processes speaks.
std::unique_ptr<RankCrew> make_process_crew(const ModelConfig& config, std::vector<RankWeights>& weights,
                                            const RunnerOptions& options);

/// Threads of each rank: as many for a rank that is a process as for one that is a thread, so that both compute the
/// same bits.
int threads_a_rank(const RunnerOptions& options, int tp);
/// Polls of a waiting thread of a rank before it sleeps: none where threads would take each other's cores.
int spin_of_ranks(const RunnerOptions& options, int tp);

/// Throws Error{bug, unsupported, bad_input, out_of_memory} unless the weights are those of the ranks that are to run
/// here, and the pages are as many as can be.
void check_ranks(const ModelConfig& config, const std::vector<RankWeights>& weights, const RunnerOptions& options);

/// Of two ranks' likeliest, the lower rank's first; ranks without rows of the vocabulary have minus infinity.
Likeliest likelier(const Likeliest& a, const Likeliest& b);

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// Ranks that are processes. Rank 0 alone decides what is computed: it sends each batch, and the others do as it says,
// so that they cannot come to differ by a clock, a signal or the memory that was free. What they compute comes back to
// it.
#include <algorithm>
#include <cstring>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/base/thread_pool.h"
#include "firstlight/ckpt/slice_map.h"
#include "firstlight/comm/cuda_process_comm.h"
#include "firstlight/comm/process_comm.h"
#include "firstlight/model/batch_message.h"
#include "firstlight/model/rank_crew.h"

namespace firstlight {
namespace {

/// Where a GPU computes, its thread has a core to itself between two passes: as ThreadPool's polls.
constexpr int kDeviceSpin = 4000;

std::unique_ptr<CudaProcessComm> sums_on(Device device, const RunnerOptions& options) {
  ProcessComm& processes = *options.processes;
  if (device.kind == Device::Kind::cpu) return nullptr;
  if (usable_cores() > processes.size()) processes.set_spin(kDeviceSpin);
  return make_cuda_process_comm(processes, device, {.by = options.sums_by});
}

/// One rank and its end of the group.
class ProcessRankRunner {
 public:
  ProcessRankRunner(const ModelConfig& config, std::vector<RankWeights>& weights, const RunnerOptions& options)
      : comm_(*options.processes),
        on_device_(sums_on(weights[0].arena.device(), options)),
        vocab_begin_(weights[0].vocab_begin),
        vocab_rows_(weights[0].vocab_rows),
        rank_(config, weights[0], options, sums(), on_device_ ? 1 : threads_a_rank(options, weights[0].tp),
              spin_of_ranks(options, weights[0].tp)) {}

  /// Computes this rank's part of `batch` and draws from all ranks' logits.
  void draw(Batch& batch, std::span<const Draw> draws, std::span<int> drawn) {
    try {
      batch.logits = {};
      rank_.forward(batch, {.draws = draws, .drawn = drawn});
      comm_.barrier();  // a rank that failed behind its last sum is heard of in this pass
    } catch (...) {
      fail();
    }
  }

  /// Computes this rank's part of `batch`. Rank 0 gets all ranks' parts in rank order, as bytes; the others nothing.
  const std::vector<std::byte>& run(PassKind kind, Batch& batch, int64_t n_wanted) {
    if (kind == PassKind::drawn) {  // what rank 0 draws counts, the others only bring their logits
      const auto n = static_cast<size_t>(n_wanted);
      std::vector<int> drawn(n);
      draw(batch, std::vector<Draw>(n), drawn);
      return all_;
    }
    try {
      const auto n = static_cast<size_t>(n_wanted);
      std::span<const std::byte> mine;
      if (kind == PassKind::likeliest) {
        picks_.assign(n, {});
        rank_.forward(batch, {.likeliest = picks_});
        mine = std::as_bytes(std::span(picks_));
      } else {
        slice_.resize(n * static_cast<size_t>(vocab_rows_));
        batch.logits = {slice_.data(), n_wanted, vocab_rows_, vocab_rows_};
        batch.logits_begin = vocab_begin_;
        rank_.forward(batch, {});
        mine = std::as_bytes(std::span(slice_));
      }
      all_.resize(comm_.rank() == 0 ? mine.size() * static_cast<size_t>(comm_.size()) : 0);
      comm_.gather(mine, all_);
    } catch (...) {
      fail();
    }
    return all_;
  }

  bool draws() const { return on_device_ != nullptr; }

  /// The good end.
  void leave() {
    if (on_device_) on_device_->leave();
  }

  ProcessComm& comm() const { return comm_; }
  const Comm& sums() const { return on_device_ ? static_cast<const Comm&>(*on_device_) : comm_; }
  int64_t vocab_rows() const { return vocab_rows_; }
  std::string_view ops_name() const { return rank_.ops_name(); }

 private:
  void fail() {
    comm_.fail(std::current_exception());
    comm_.check();  // throws the first cause, in every process the same
  }
  Comm& sums() { return on_device_ ? static_cast<Comm&>(*on_device_) : comm_; }

  ProcessComm& comm_;
  const std::unique_ptr<CudaProcessComm> on_device_;  // null on the CPU, where comm_ adds up
  const int64_t vocab_begin_, vocab_rows_;
  LlamaRank rank_;
  std::vector<float> slice_;  // [wanted rows, vocab_rows]: this rank's columns of the logits, padding included
  std::vector<Likeliest> picks_;
  std::vector<std::byte> all_;
};

class ProcessCrew final : public RankCrew {
 public:
  ProcessCrew(const ModelConfig& config, std::vector<RankWeights>& weights, const RunnerOptions& options)
      : runner_(config, weights, options) {}

  void run(Batch& batch, const PassResult& result) override {
    if (!result.draws.empty()) {
      std::vector<std::byte> message = batch_message(PassKind::drawn, batch);
      runner_.comm().broadcast(message);
      return runner_.draw(batch, result.draws, result.drawn);
    }
    const bool greedy = !result.likeliest.empty();
    const PassKind kind = greedy ? PassKind::likeliest : PassKind::logits;
    const auto n_wanted = greedy ? static_cast<int64_t>(result.likeliest.size()) : result.logits.rows;
    std::vector<std::byte> message = batch_message(kind, batch);
    runner_.comm().broadcast(message);
    const std::vector<std::byte>& all = runner_.run(kind, batch, n_wanted);
    if (greedy) {
      take_likeliest(all, result.likeliest);
    } else {
      take_logits(all, result.logits);
    }
  }

  void finish() override {
    std::vector<std::byte> message = batch_message(PassKind::end, {});
    runner_.comm().broadcast(message);
    runner_.leave();
  }
  void sum_keys_and_values(std::span<const int32_t>, int64_t, int64_t, std::span<double>) override {
    throw Error(ErrorKind::unsupported, "keys and values of ranks that are processes are not summed up");
  }
  bool draws() const override { return runner_.draws(); }
  std::string_view ops_name() const override { return runner_.ops_name(); }
  std::string_view comm_path() const override { return runner_.sums().path(); }

 private:
  int size() const { return runner_.comm().size(); }

  void take_likeliest(const std::vector<std::byte>& all, std::span<Likeliest> out) {
    std::vector<Likeliest> theirs(out.size() * static_cast<size_t>(size()));
    std::memcpy(theirs.data(), all.data(), all.size());
    for (size_t i = 0; i < out.size(); ++i) {
      out[i] = theirs[i];
      for (size_t at = i + out.size(); at < theirs.size(); at += out.size()) out[i] = likelier(out[i], theirs[at]);
    }
  }

  /// Rank r's columns begin at r * vocab_rows; behind the vocabulary is padding.
  void take_logits(const std::vector<std::byte>& all, const Matrix<float>& out) {
    const int64_t n = runner_.vocab_rows();
    const std::byte* from = all.data();
    for (int64_t begin = 0; begin < size() * n; begin += n) {
      const int64_t cols = std::clamp<int64_t>(out.cols - begin, 0, n);
      for (int64_t row = 0; row < out.rows; ++row, from += static_cast<size_t>(n) * sizeof(float)) {
        if (cols > 0) std::memcpy(out.row(row) + begin, from, static_cast<size_t>(cols) * sizeof(float));
      }
    }
  }

  ProcessRankRunner runner_;
};

}  // namespace

std::unique_ptr<RankCrew> make_process_crew(const ModelConfig& config, std::vector<RankWeights>& weights,
                                            const RunnerOptions& options) {
  return std::make_unique<ProcessCrew>(config, weights, options);
}

void follow_passes(const ModelConfig& config, std::vector<RankWeights>& weights, const RunnerOptions& options) {
  check_ranks(config, weights, options);
  ProcessRankRunner runner(config, weights, options);
  for (std::vector<std::byte> message;;) {
    runner.comm().broadcast(message);
    ReceivedBatch received = read_batch_message(message);
    if (received.kind == PassKind::end) return runner.leave();
    runner.run(received.kind, received.batch, received.n_wanted);
  }
}

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// All ranks of one model, run together: a batch of tokens in, logits out.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "firstlight/ckpt/kv_calibration.h"
#include "firstlight/ckpt/model_config.h"
#include "firstlight/ckpt/weights.h"
#include "firstlight/kv/page_pool.h"
#include "firstlight/ops/ops.h"
#include "firstlight/ops/sampling.h"

namespace firstlight {

class ProcessComm;
enum class SumsBy : int;

/// Some consecutive tokens of one sequence, of which a batch has no others.
struct SequenceChunk {
  std::span<const int> tokens;  ///< at positions [position, position + tokens.size())
  int64_t position = 0;         ///< tokens already in the KV pages
  PageTable* pages = nullptr;   ///< has room for position + tokens.size() tokens; forward() takes exact pages
  /// Rows of logits wanted: the last `n_logits` tokens of the chunk (0: none, as in all but the last chunk of a
  /// prompt).
  int n_logits = 0;
  /// Over codes: the chunk's tokens, if there are 8 or more, read one another exactly, whatever is_exact() says.
  /// Results then depend on where chunks begin.
  bool fresh_exactly = false;
};

struct RunnerOptions {
  KvKind kv = KvKind::bf16;
  int64_t n_pages = 0;        ///< size of the page pool, pages of 64 tokens over all layers
  int64_t n_exact_pages = 0;  ///< of the pool of bf16 pages beside codes, exact_pages_for(); 0 for f32 and bf16
  /// Subtracted from keys and values before they become codes (KvLayer::means); null: they are not centred. With codes
  /// alone: otherwise make_runner throws Error{bad_input}.
  std::shared_ptr<const KvMeans> means;
  int max_batch_tokens = 512;
  int n_threads = 0;                                          ///< over all ranks; 0: usable cores
  std::function<std::unique_ptr<Ops>(ThreadPool&)> make_ops;  ///< one a rank, on its thread; default: by the weights
  /// Null: every rank is a thread of this process. Else each is a process of its own, which has this end of their group
  /// and the weights of its rank alone, on the CPU or on a GPU. Outlives the runner.
  ProcessComm* processes = nullptr;
  SumsBy sums_by{};  ///< of processes on GPUs (comm/cuda_process_comm.h)
};

/// Owns each rank's KV pages and scratch, and the rank threads. The weights must outlive it. One forward() at a time.
class Runner {
 public:
  virtual ~Runner() = default;
  /// Computes every chunk of the batch (at most max_batch_tokens tokens in all), layer by layer behind the weights'
  /// gates, and writes the wanted rows of logits [n_rows, vocab_size] in chunk order. Rows of different sequences do
  /// not influence each other's values beyond the rounding of differently shaped products. The result is bit-identical
  /// from run to run and for any page order. A failed rank ends the call on all ranks with the first cause; the pages
  /// of its sequences then hold nothing of use. Throws Error{bad_input} for a token id that is not the model's.
  virtual void forward(std::span<const SequenceChunk> batch, std::vector<float>& logits) = 0;
  /// The same pass, but of each wanted row the likeliest token alone, the lowest id among equals: all that greedy
  /// sampling needs, and all that a GPU then has to send.
  virtual void forward_greedy(std::span<const SequenceChunk> batch, std::vector<Likeliest>& likeliest);
  /// The same pass, but of each wanted row what its draw says (−1: not a row to draw from). GPUs draw
  /// themselves, also where each has a part of the vocabulary; of several ranks on the CPU the caller's thread does.
  virtual void forward_drawn(std::span<const SequenceChunk> batch, std::span<const Draw> draws, std::vector<int>& ids);
  /// Adds up what an f32 cache on the CPU holds of a sequence's tokens [begin, end), which have been computed: sums
  /// [n_layers][k, v][n_kv_heads][head_dim] of keys as rotated and of values. Error{unsupported} for any other cache.
  virtual void sum_keys_and_values(const PageTable& pages, int64_t begin, int64_t end, std::span<double> sums);
  virtual const ModelConfig& config() const = 0;
  virtual PagePool& pool() = 0;
  /// The pool that the PageTables of a compressed cache take exact pages from, else null. The caller gives them back by
  /// PageTable::release_exact() as a sequence moves on.
  virtual PagePool* exact_pool() { return nullptr; }
  /// Where each rank's pages lie [tp], for who saves and restores them between two passes; of pages that no sequence
  /// was computed into the bytes mean nothing. Empty where ranks are processes: not all can be reached.
  virtual std::vector<RankPages> rank_pages() const { return {}; }
  /// Between two passes: the content of a page, or of an exact page, in another one, on all ranks. Blocks. Throws
  /// Error{unsupported} where ranks are processes.
  virtual void copy_page(int32_t from, int32_t to);
  virtual void copy_exact_page(int32_t from, int32_t to);
  virtual std::string_view ops_name() const = 0;  ///< of rank 0: "cpu: avx512_bf16, 2 threads"
  /// How ranks exchange sums: Comm::path().
  virtual std::string_view comm_path() const { return "one rank"; }
  /// Ranks in other processes return from follow_passes(); blocks until they do. No pass may follow.
  virtual void finish() {}
};

/// With options.processes: rank 0's; the other ranks call follow_passes().
std::unique_ptr<Runner> make_runner(const ModelConfig& config, std::vector<RankWeights>& weights,
                                    const RunnerOptions& options);
/// Computes this process's rank of every pass of rank 0's runner, until that is finished. options as rank 0's, but for
/// `processes`. Throws the first cause if any rank fails.
void follow_passes(const ModelConfig& config, std::vector<RankWeights>& weights, const RunnerOptions& options);

/// Bytes of one page over all layers and all ranks.
uint64_t kv_page_bytes(const ModelConfig& config, int tp, KvKind kind);
/// Bytes of all exact pages over all layers and all ranks.
uint64_t exact_bytes(const ModelConfig& config, int tp, const RunnerOptions& options);
/// Scratch bytes over all ranks, from above: activations of max_batch_tokens, what the arithmetic packs, what ranks
/// exchange, one row of logits (the logits themselves are the caller's).
uint64_t scratch_bytes(const ModelConfig& config, int tp, const RunnerOptions& options);

}  // namespace firstlight

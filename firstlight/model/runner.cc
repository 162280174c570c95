// SPDX-License-Identifier: Apache-2.0
// Checks a batch and hands it to the ranks.
#include "firstlight/model/runner.h"

#include <algorithm>
#include <utility>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ckpt/slice_map.h"
#include "firstlight/comm/process_comm.h"
#include "firstlight/device/copy.h"
#include "firstlight/model/rank_crew.h"

namespace firstlight {
namespace {

constexpr uint64_t kPanelBytes = 1 << 20;  // a thread's panels and attention block, rounded up

void check_chunk(const SequenceChunk& chunk, const ModelConfig& config, int64_t n_pages) {
  const auto n = static_cast<int64_t>(chunk.tokens.size());
  for (const int id : chunk.tokens) {
    if (id < 0 || id >= config.vocab_size) {
      throw Error(ErrorKind::bad_input, str("token id ", id, ": the model has ids 0 to ", config.vocab_size - 1));
    }
  }
  if (chunk.n_logits < 0 || chunk.n_logits > n) {
    throw Error(ErrorKind::bug, str("a chunk of ", n, " tokens wants ", chunk.n_logits, " rows of logits"));
  }
  if (n == 0) return;
  const int64_t capacity = chunk.pages == nullptr ? 0 : chunk.pages->capacity();
  if (chunk.position < 0 || chunk.position > capacity - n) {
    throw Error(ErrorKind::bug,
                str("tokens ", chunk.position, " to ", chunk.position + n, " of a sequence with pages for ", capacity));
  }
  for (const int32_t page : chunk.pages->pages()) {
    if (page < 0 || page >= n_pages) throw Error(ErrorKind::bug, str("KV page ", page, " of ", n_pages));
  }
}

class LlamaRunner final : public Runner {
 public:
  LlamaRunner(const ModelConfig& config, std::vector<RankWeights>& weights, const RunnerOptions& options)
      : config_(config),
        max_batch_tokens_(options.max_batch_tokens),
        pool_(options.n_pages),
        exact_pool_(options.n_exact_pages),
        compressed_(is_compressed(options.kv)),
        crew_(options.processes != nullptr ? make_process_crew(config_, weights, options)
                                           : make_thread_crew(config_, weights, options)) {}

  void forward(std::span<const SequenceChunk> chunks, std::vector<float>& logits) override {
    const size_t n_wanted = gather(chunks);
    logits.resize(n_wanted * static_cast<size_t>(config_.vocab_size));
    run({.logits = {logits.data(), static_cast<int64_t>(n_wanted), config_.vocab_size, config_.vocab_size}});
  }

  void forward_drawn(std::span<const SequenceChunk> chunks, std::span<const Draw> draws,
                     std::vector<int>& ids) override {
    if (!crew_->draws()) return Runner::forward_drawn(chunks, draws, ids);
    const size_t n_wanted = gather(chunks);
    if (draws.size() != n_wanted) throw Error(ErrorKind::bug, str(draws.size(), " draws for ", n_wanted, " rows"));
    ids.assign(n_wanted, -1);
    run({.draws = draws, .drawn = ids});
  }

  void forward_greedy(std::span<const SequenceChunk> chunks, std::vector<Likeliest>& likeliest) override {
    likeliest.assign(gather(chunks), {});
    run({.likeliest = likeliest});
  }

  void sum_keys_and_values(const PageTable& pages, int64_t begin, int64_t end, std::span<double> sums) override {
    if (begin < 0 || begin > end || end > pages.capacity())
      throw Error(ErrorKind::bug, str("sums of tokens ", begin, " to ", end, " of ", pages.capacity()));
    crew_->sum_keys_and_values(pages.pages(), begin, end, sums);
  }

  const ModelConfig& config() const override { return config_; }
  PagePool& pool() override { return pool_; }
  PagePool* exact_pool() override { return compressed_ ? &exact_pool_ : nullptr; }
  std::vector<RankPages> rank_pages() const override { return crew_->rank_pages(); }
  std::string_view ops_name() const override { return crew_->ops_name(); }
  std::string_view comm_path() const override { return crew_->comm_path(); }
  void finish() override { crew_->finish(); }

 private:
  void run(const PassResult& result) {
    if (!batch_.ids.empty()) crew_->run(batch_, result);
  }

  /// Fills batch_ with the chunks' rows; how many of them are wanted.
  size_t gather(std::span<const SequenceChunk> chunks) {
    batch_.ids.clear();
    batch_.spans.clear();
    batch_.wanted.clear();
    tables_.clear();
    int64_t n_wanted = 0;
    for (const SequenceChunk& chunk : chunks) {
      check_chunk(chunk, config_, pool_.n_pages());
      if (chunk.tokens.empty()) continue;
      const auto begin = static_cast<int64_t>(batch_.ids.size()), n = static_cast<int64_t>(chunk.tokens.size());
      batch_.ids.insert(batch_.ids.end(), chunk.tokens.begin(), chunk.tokens.end());
      tables_.push_back(chunk.pages);
      AttentionSpan span{begin, n, chunk.position, chunk.pages->pages().data(), hold_exact(chunk)};
      // What the first row reads exactly is held for all.
      if (compressed_ && chunk.fresh_exactly)
        span.exact_from = std::max<int64_t>(0, chunk.position / kPageTokens + 1 - kExactTail);
      batch_.spans.push_back(span);
      if (chunk.n_logits == 0) continue;
      const int64_t skipped = n - chunk.n_logits;
      batch_.wanted.push_back(
          {begin + skipped, chunk.n_logits, chunk.position + skipped, span.pages, span.exact, span.exact_from});
      n_wanted += chunk.n_logits;
    }
    std::sort(tables_.begin(), tables_.end());
    if (std::adjacent_find(tables_.begin(), tables_.end()) != tables_.end()) {
      throw Error(ErrorKind::bug, "two chunks of one sequence in a batch");
    }
    if (static_cast<int64_t>(batch_.ids.size()) > max_batch_tokens_) {
      throw Error(ErrorKind::bug,
                  str("a batch of ", batch_.ids.size(), " tokens: the runner was made for ", max_batch_tokens_));
    }
    return static_cast<size_t>(n_wanted);
  }

  /// The numbers of the chunk's exact pages, all held that it reads or writes; null without codes.
  const int32_t* hold_exact(const SequenceChunk& chunk) {
    if (!compressed_) return nullptr;
    if (chunk.pages->exact().empty()) throw Error(ErrorKind::bug, "a sequence without exact pages beside its codes");
    chunk.pages->hold_exact(chunk.position, chunk.position + static_cast<int64_t>(chunk.tokens.size()));
    return chunk.pages->exact().data();
  }

  const ModelConfig config_;
  const int max_batch_tokens_;
  PagePool pool_, exact_pool_;
  const bool compressed_;
  Batch batch_;
  std::vector<const PageTable*> tables_;  // of its chunks
  const std::unique_ptr<RankCrew> crew_;
};

void check_means(const ModelConfig& config, const KvMeans& means, KvKind kind) {
  if (!is_compressed(kind))
    throw Error(ErrorKind::bad_input,
                str("keys and values are centred before they become codes; ", to_string(kind), " keeps numbers"));
  if (means.n_layers != config.n_layers || means.n_kv_heads != config.n_kv_heads || means.head_dim != config.head_dim)
    throw Error(ErrorKind::bad_input, "the means of keys and values are another model's");
}

}  // namespace

void check_ranks(const ModelConfig& config, const std::vector<RankWeights>& weights, const RunnerOptions& options) {
  if (weights.empty()) throw Error(ErrorKind::bug, "a runner without ranks");
  const ProcessComm* processes = options.processes;
  const int tp = processes != nullptr ? processes->size() : static_cast<int>(weights.size());
  const int first = processes != nullptr ? processes->rank() : 0;
  require_tp(config, tp);
  for (size_t i = 0; i < weights.size(); ++i) {
    const RankWeights& rank = weights[i];
    const int r = first + static_cast<int>(i);
    if (rank.rank != r || rank.tp != tp || (processes != nullptr && i > 0)) {
      throw Error(ErrorKind::bug,
                  str("weights of rank ", rank.rank, " of ", rank.tp, " stand where rank ", r, " of ", tp, " should"));
    }
  }
  if (options.max_batch_tokens < 1) throw Error(ErrorKind::bug, str("max_batch_tokens ", options.max_batch_tokens));
  const int64_t exact = is_compressed(options.kv) ? exact_pages_for(1, options.max_batch_tokens, options.n_pages) : 0;
  if (is_compressed(options.kv) ? options.n_exact_pages < exact : options.n_exact_pages != 0) {
    throw Error(ErrorKind::bug, str(options.n_exact_pages, " exact KV pages beside ", to_string(options.kv),
                                    ", expected ", exact, exact > 0 ? " at least" : ""));
  }
  if (options.means) check_means(config, *options.means, options.kv);
  const uint64_t page = RankShape(config, tp).page_bytes(options.kv);
  if (options.n_pages < 0 || options.n_pages > INT32_MAX ||
      static_cast<uint64_t>(options.n_pages) > UINT64_MAX / page) {
    throw Error(ErrorKind::out_of_memory, str(options.n_pages, " KV pages of ", page, " bytes"));
  }
}

void Runner::forward_greedy(std::span<const SequenceChunk> batch, std::vector<Likeliest>& likeliest) {
  std::vector<float> logits;
  forward(batch, logits);
  const auto vocab_size = static_cast<size_t>(config().vocab_size);
  likeliest.clear();
  for (size_t at = 0; at < logits.size(); at += vocab_size) {
    likeliest.push_back(likeliest_of({logits.data() + at, vocab_size}, 0));
  }
}

void Runner::sum_keys_and_values(const PageTable&, int64_t, int64_t, std::span<double>) {
  throw Error(ErrorKind::unsupported, "this runner keeps no numbers to add up");
}

void Runner::forward_drawn(std::span<const SequenceChunk> batch, std::span<const Draw> draws, std::vector<int>& ids) {
  std::vector<float> logits;
  forward(batch, logits);
  const auto vocab_size = static_cast<size_t>(config().vocab_size);
  if (logits.size() != draws.size() * vocab_size) {
    throw Error(ErrorKind::bug, str(draws.size(), " draws from ", logits.size(), " logits"));
  }
  ids.clear();
  for (size_t i = 0; i < draws.size(); ++i) {
    ids.push_back(draw_from({logits.data() + i * vocab_size, vocab_size}, draws[i]));
  }
}

namespace {

std::vector<RankPages> reachable(std::vector<RankPages> ranks) {
  if (ranks.empty()) throw Error(ErrorKind::unsupported, "pages of ranks that are processes are not shared or copied");
  return ranks;
}

}  // namespace

void Runner::copy_page(int32_t from, int32_t to) {
  for (const RankPages& rank : reachable(rank_pages())) {
    const auto at = [&](int32_t page) { return rank.pages + static_cast<uint64_t>(page) * rank.page_bytes; };
    copy(at(to), rank.device, at(from), rank.device, rank.page_bytes);
  }
}

void Runner::copy_exact_page(int32_t from, int32_t to) {
  for (const RankPages& rank : reachable(rank_pages())) {
    const auto at = [&](int32_t page) { return rank.exact + static_cast<uint64_t>(page) * rank.exact_page_bytes; };
    copy(at(to), rank.device, at(from), rank.device, rank.exact_page_bytes);
  }
}

std::unique_ptr<Runner> make_runner(const ModelConfig& config, std::vector<RankWeights>& weights,
                                    const RunnerOptions& options) {
  check_ranks(config, weights, options);
  return std::make_unique<LlamaRunner>(config, weights, options);
}

uint64_t kv_page_bytes(const ModelConfig& config, int tp, KvKind kind) {
  return RankShape(config, tp).page_bytes(kind) * static_cast<uint64_t>(tp);
}

uint64_t exact_bytes(const ModelConfig& config, int tp, const RunnerOptions& options) {
  return kv_page_bytes(config, tp, KvKind::bf16) * static_cast<uint64_t>(options.n_exact_pages);
}

uint64_t scratch_bytes(const ModelConfig& config, int tp, const RunnerOptions& options) {
  const RankShape shape(config, tp);
  const auto rows = static_cast<uint64_t>(std::max(1, options.max_batch_tokens)), ranks = static_cast<uint64_t>(tp);
  const auto widest = static_cast<uint64_t>(std::max<int64_t>({shape.dim, shape.heads_cols(), shape.hidden_dim}));
  const uint64_t activations = shape.scratch_bytes(static_cast<int64_t>(rows));
  // What the arithmetic keeps: a packed copy of a product's input, angles, and a panel a thread.
  uint64_t packed = rows * (widest + static_cast<uint64_t>(config.head_dim)) * sizeof(float);
  if (is_compressed(options.kv)) {  // queries as integers, and what a unit of each is worth
    packed += rows * (static_cast<uint64_t>(shape.heads_cols()) * sizeof(int16_t) +
                      static_cast<uint64_t>(shape.n_heads) * sizeof(float));
  }
  const auto threads = static_cast<uint64_t>(options.n_threads > 0 ? options.n_threads : usable_cores());
  const uint64_t exchanged = tp == 1 ? 0 : (ranks + 1) * rows * static_cast<uint64_t>(config.dim) * sizeof(float);
  const uint64_t logits = static_cast<uint64_t>(config.vocab_size) * sizeof(float);
  return ranks * (activations + packed) + std::max(threads, ranks) * kPanelBytes + exchanged + logits;
}

}  // namespace firstlight

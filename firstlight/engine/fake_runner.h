// SPDX-License-Identifier: Apache-2.0
// A model for the engine's tests: each row of logits is a function of all tokens that can be reached through the
// sequence's pages, so a wrong page, a lost token or a wrong position changes what is generated. It also checks every
// batch.
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "firstlight/model/runner.h"

namespace firstlight {

class FakeRunner : public Runner {
 public:
  FakeRunner(int64_t n_pages, int vocab_size, int max_context, int max_batch_tokens)
      : pool_(n_pages), slots_(static_cast<size_t>(n_pages) * kPageTokens, -1), max_batch_tokens_(max_batch_tokens) {
    config_.vocab_size = vocab_size;
    config_.max_context = max_context;
  }

  struct Chunk {
    size_t n_tokens;
    int64_t position;
    int n_logits;
    bool fresh_exactly;
  };
  std::vector<std::vector<Chunk>> batches;  ///< what forward() was given
  int fail_at = -1;                         ///< the forward() that throws
  float poison_id = -1;                     ///< rows of sequences that begin with this token are not numbers

  void forward(std::span<const SequenceChunk> batch, std::vector<float>& logits) override {
    if (static_cast<int>(batches.size()) == fail_at) throw std::runtime_error("the fake model broke");
    check(batch);
    logits.clear();
    for (const SequenceChunk& chunk : batch) {
      for (size_t i = 0; i < chunk.tokens.size(); ++i)
        slot(chunk, chunk.position + static_cast<int64_t>(i)) = chunk.tokens[i];
      const int64_t end = chunk.position + static_cast<int64_t>(chunk.tokens.size());
      for (int64_t last = end - chunk.n_logits; last < end; ++last) append_row(chunk, last, logits);
    }
  }
  void copy_page(int32_t from, int32_t to) override {
    std::copy_n(slots_.begin() + from * kPageTokens, kPageTokens, slots_.begin() + to * kPageTokens);
    ++n_copied;
  }
  int n_copied = 0;  ///< pages
  const ModelConfig& config() const override { return config_; }
  PagePool& pool() override { return pool_; }
  std::string_view ops_name() const override { return "fake"; }

  /// The row that a history leads to.
  static std::vector<float> row_of(std::span<const int> history, int vocab_size) {
    uint64_t hash = 1469598103934665603u;
    for (const int token : history) hash = (hash ^ static_cast<uint64_t>(token + 1)) * 1099511628211u;
    std::vector<float> row;
    for (int id = 0; id < vocab_size; ++id) {
      uint64_t x = hash + 0x9e3779b97f4a7c15u * static_cast<uint64_t>(id + 1);
      x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
      x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
      row.push_back(static_cast<float>(static_cast<double>((x ^ (x >> 31)) >> 40) / (1 << 22) - 2));
    }
    return row;
  }

 private:
  int& slot(const SequenceChunk& chunk, int64_t position) {
    const auto page = static_cast<size_t>(chunk.pages->pages().at(static_cast<size_t>(position / kPageTokens)));
    return slots_.at(page * kPageTokens + static_cast<size_t>(position % kPageTokens));
  }
  void append_row(const SequenceChunk& chunk, int64_t last, std::vector<float>& logits) {
    std::vector<int> history;
    for (int64_t t = 0; t <= last; ++t) history.push_back(slot(chunk, t));
    std::vector<float> row = row_of(history, config_.vocab_size);
    if (static_cast<float>(history[0]) == poison_id) row[0] = std::numeric_limits<float>::quiet_NaN();
    logits.insert(logits.end(), row.begin(), row.end());
  }
  void check(std::span<const SequenceChunk> batch) {
    std::map<int32_t, int> readers;  // sequences of the batch that have the page
    std::set<int32_t> written;
    size_t n_tokens = 0;
    batches.emplace_back();
    for (const SequenceChunk& chunk : batch) {
      const int64_t end = chunk.position + static_cast<int64_t>(chunk.tokens.size());
      if (chunk.tokens.empty()) throw std::logic_error("a chunk without tokens");
      if (end > chunk.pages->capacity()) throw std::logic_error("a chunk without room");
      if (end > config_.max_context) throw std::logic_error("a chunk beyond the context");
      for (const int32_t page : chunk.pages->pages()) ++readers[page];
      for (int64_t page = chunk.position / kPageTokens; page <= (end - 1) / kPageTokens; ++page)
        written.insert(chunk.pages->pages().at(static_cast<size_t>(page)));
      n_tokens += chunk.tokens.size();
      batches.back().push_back({chunk.tokens.size(), chunk.position, chunk.n_logits, chunk.fresh_exactly});
    }
    for (const int32_t page : written) {
      if (readers[page] > 1 || pool_.n_holders(page) != 1 || pool_.is_kept(page))
        throw std::logic_error("a page is written that is not the sequence's alone");
    }
    if (n_tokens > static_cast<size_t>(max_batch_tokens_)) throw std::logic_error("a batch beyond the budget");
    if (batch.empty()) throw std::logic_error("an empty batch");
  }

  ModelConfig config_;
  PagePool pool_;
  std::vector<int> slots_;
  int max_batch_tokens_;
};

}  // namespace firstlight

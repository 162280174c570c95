// SPDX-License-Identifier: Apache-2.0
// For tests: a fake model over a compressed cache.
#pragma once
#include <algorithm>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <vector>

#include "firstlight/engine/engine_testing.h"

namespace firstlight {

/// Keeps each token in its page and in its exact page, and checks that what a row may read exactly is there.
class ExactRunner : public FakeRunner {
 public:
  ExactRunner(int64_t n_pages, int64_t n_exact, int budget)
      : FakeRunner(n_pages, kVocab, 4096, budget),
        exact_(n_exact),
        tokens_(static_cast<size_t>(n_pages) * kPageTokens, -1),
        exact_tokens_(static_cast<size_t>(n_exact) * kPageTokens, -1) {}
  PagePool* exact_pool() override { return exact_.n_pages() > 0 ? &exact_ : nullptr; }
  void copy_page(int32_t from, int32_t to) override {
    FakeRunner::copy_page(from, to);
    copy(tokens_, from, to);
  }
  void copy_exact_page(int32_t from, int32_t to) override { copy(exact_tokens_, from, to); }
  void forward(std::span<const SequenceChunk> batch, std::vector<float>& logits) override {
    for (const SequenceChunk& chunk : batch) {
      if (exact_pool() == nullptr) break;
      const auto n = static_cast<int64_t>(chunk.tokens.size());
      chunk.pages->hold_exact(chunk.position, chunk.position + n);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t t = chunk.position + i;
        at(tokens_, chunk.pages->pages(), t) = at(exact_tokens_, chunk.pages->exact(), t) =
            chunk.tokens[static_cast<size_t>(i)];
        for (int64_t read = 0; read <= t; ++read) {
          if (!is_exact(read / kPageTokens, t / kPageTokens)) continue;
          if (at(exact_tokens_, chunk.pages->exact(), read) != at(tokens_, chunk.pages->pages(), read))
            throw std::logic_error("an exact page does not hold its tokens");
        }
      }
    }
    FakeRunner::forward(batch, logits);
  }

 private:
  static void copy(std::vector<int>& tokens, int32_t from, int32_t to) {
    std::copy_n(tokens.begin() + from * kPageTokens, kPageTokens, tokens.begin() + to * kPageTokens);
  }
  static int& at(std::vector<int>& tokens, const std::vector<int32_t>& pages, int64_t t) {
    const auto page = static_cast<size_t>(pages.at(static_cast<size_t>(t / kPageTokens)));
    return tokens.at(page * kPageTokens + static_cast<size_t>(t % kPageTokens));
  }
  PagePool exact_;
  std::vector<int> tokens_, exact_tokens_;
};

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// For tests only: a batch of sequences over pages in a random order, and attention over it from the definition.
#pragma once
#include <algorithm>
#include <cmath>

#include "firstlight/ops/reference.h"

namespace firstlight::reference {

struct Sequence {
  int64_t n_rows, position;
};

/// A batch of sequences whose pages are dealt in a random order, with random keys and values in all visible slots.
struct Batch {
  int n_heads, n_kv_heads, head_dim;
  std::vector<std::vector<int32_t>> pages;
  std::vector<AttentionSpan> spans;
  Cache cache;
  Tensor q;
  int64_t n_rows = 0;

  static int64_t count_pages(const std::vector<Sequence>& sequences) {
    int64_t n = 0;
    for (const Sequence& s : sequences) n += (s.position + s.n_rows - 1) / kPageTokens + 1;
    return n;
  }

  Batch(const std::vector<Sequence>& sequences, KvKind kind, int heads, int kv_heads, int d, uint32_t page_seed)
      : n_heads(heads), n_kv_heads(kv_heads), head_dim(d), cache(kind, kv_heads, d, count_pages(sequences) + 3) {
    std::vector<int32_t> free(static_cast<size_t>(count_pages(sequences) + 3));
    std::iota(free.begin(), free.end(), 0);
    std::shuffle(free.begin(), free.end(), std::mt19937(page_seed));
    std::mt19937 random(5);  // values do not depend on where pages lie
    std::normal_distribution<float> normal;
    for (const Sequence& s : sequences) {
      const int64_t n_keys = s.position + s.n_rows;
      std::vector<int32_t>& own = pages.emplace_back();
      for (int64_t page = 0; page <= (n_keys - 1) / kPageTokens; ++page) own.push_back(free.back()), free.pop_back();
      for (int64_t t = 0; t < n_keys; ++t) {
        for (int i = 0; i < 2 * kv_heads * d; ++i) {
          cache.set(own[static_cast<size_t>(t / kPageTokens)], i / (kv_heads * d), i / d % kv_heads, t % kPageTokens,
                    i % d, normal(random));
        }
      }
      spans.push_back({n_rows, s.n_rows, s.position, nullptr});
      n_rows += s.n_rows;
    }
    for (size_t i = 0; i < spans.size(); ++i) spans[i].pages = pages[i].data();
    q = random_tensor(n_rows, (heads + 2 * kv_heads) * d, DType::f32, 6);
  }

  std::vector<float> attend(Ops& ops) {
    Tensor out = unwritten(n_rows, int64_t{n_heads} * head_dim);
    ops.attend(q.view(), n_heads, spans, cache.layer(), out.matrix());
    return out.f32;
  }

  /// Softmax over the visible keys, in double; `rounded`: q as bf16.
  std::vector<double> exact(const AttentionSpan& span, int64_t row, int head, bool rounded) {
    const int64_t n_keys = span.position + row + 1;
    const int kv_head = head / (n_heads / n_kv_heads);
    std::vector<double> scores(static_cast<size_t>(n_keys)), out(static_cast<size_t>(head_dim));
    for (int64_t t = 0; t < n_keys; ++t) {
      for (int i = 0; i < head_dim; ++i) {
        double x = q.at(span.row_begin + row, head * head_dim + i);
        if (rounded) x = bf16_to_f32(f32_to_bf16(static_cast<float>(x)));
        scores[static_cast<size_t>(t)] += x * cache.value(span.pages[t / kPageTokens], 0, kv_head, t % kPageTokens, i);
      }
      scores[static_cast<size_t>(t)] /= std::sqrt(static_cast<double>(head_dim));
    }
    const double top = *std::max_element(scores.begin(), scores.end());
    double total = 0;
    for (double& s : scores) total += s = std::exp(s - top);
    for (int64_t t = 0; t < n_keys; ++t) {
      for (int i = 0; i < head_dim; ++i) {
        out[static_cast<size_t>(i)] += scores[static_cast<size_t>(t)] / total *
                                       cache.value(span.pages[t / kPageTokens], 1, kv_head, t % kPageTokens, i);
      }
    }
    return out;
  }
};

}  // namespace firstlight::reference

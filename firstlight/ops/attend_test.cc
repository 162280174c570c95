// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "firstlight/base/error.h"
#include "firstlight/ops/reference.h"

namespace firstlight {
namespace {

using reference::Cache;
using reference::random_tensor;
using reference::Tensor;
using reference::unwritten;

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

class Attend : public reference::EachLevel {
 protected:
  void check(const std::vector<Sequence>& sequences, KvKind kind, int heads, int kv_heads, int d) {
    SCOPED_TRACE(testing::Message() << to_string(kind) << ", " << heads << " heads on " << kv_heads << " of " << d);
    Batch batch(sequences, kind, heads, kv_heads, d, 1);
    const std::vector<float> out = batch.attend(*ops_);
    for (const AttentionSpan& span : batch.spans) {
      const bool pairs = rounds(kind == KvKind::bf16 ? DType::bf16 : DType::f32, span.n_rows);
      const double bound =
          pairs ? 6e-3 : 5e-6;  // probabilities as bf16: half a unit of 2^-8 each, values of a few units
      for (int64_t row = 0; row < span.n_rows; ++row) {
        if (span.n_rows > 20 && row % 7 != 0 && row != span.n_rows - 1) continue;  // the oracle is slow
        for (int head = 0; head < heads; ++head) {
          const std::vector<double> exact = batch.exact(span, row, head, pairs);
          for (int i = 0; i < d; ++i) {
            ASSERT_NEAR(out[static_cast<size_t>(((span.row_begin + row) * heads + head) * d + i)],
                        exact[static_cast<size_t>(i)], bound)
                << "span of " << span.n_rows << " rows at " << span.position << ", row " << row << ", head " << head
                << ", value " << i;
          }
        }
      }
    }
  }
};

TEST_P(Attend, EqualsSoftmaxOverTheVisibleKeys) {
  for (const KvKind kind : {KvKind::bf16, KvKind::f32}) {
    check({{1, 0}}, kind, 2, 1, 64);
    check({{1, 63}, {1, 64}, {1, 300}}, kind, 4, 2, 64);
    check({{8, 0}, {9, 60}, {7, 61}, {1, 5}}, kind, 3, 3, 64);
    check({{64, 0}}, kind, 2, 1, 64);
    check({{65, 3}}, kind, 2, 2, 64);
    check({{130, 70}, {17, 0}}, kind, 3, 1, 64);
  }
}

TEST_P(Attend, EqualsSoftmaxForEveryHeadShape) {
  for (const KvKind kind : {KvKind::bf16, KvKind::f32}) {
    for (const int d : {16, 18, 64, 80, 96, 128}) check({{1, 100}, {3, 62}, {21, 55}}, kind, 4, 2, d);
    for (int kv_heads = 1; kv_heads <= 8; ++kv_heads)
      check({{1, 70}, {9, 60}}, kind, kv_heads * (1 + kv_heads % 3), kv_heads, 32);
    check({{1, 70}, {9, 60}}, kind, 7, 1, 64);
  }
}

TEST_P(Attend, IsTheSameBitsForAnyOrderOfPages) {
  for (const KvKind kind : {KvKind::bf16, KvKind::f32}) {
    const std::vector<Sequence> sequences{{1, 700}, {33, 100}, {5, 64}, {1, 0}};
    Batch first(sequences, kind, 6, 2, 64, 1);
    const std::vector<float> expected = first.attend(*ops_);
    for (uint32_t seed = 2; seed < 6; ++seed) {
      Batch other(sequences, kind, 6, 2, 64, seed);
      ASSERT_NE(other.pages, first.pages);
      reference::expect_same(other.attend(*ops_), expected, "attention");
    }
  }
}

TEST_P(Attend, ASequenceIsTheSameBitsAloneAndInABatch) {
  for (const KvKind kind : {KvKind::bf16, KvKind::f32}) {
    Batch batch({{1, 700}, {40, 30}, {1, 63}, {3, 500}}, kind, 6, 2, 64, 1);
    const std::vector<float> all = batch.attend(*ops_);
    const std::vector<AttentionSpan> spans = batch.spans;
    const int64_t width = 6 * 64;
    for (const AttentionSpan& span : spans) {
      batch.spans = {span};
      const std::vector<float> out = batch.attend(*ops_);
      const auto rows = [&](const std::vector<float>& from) {
        return std::vector<float>(from.begin() + span.row_begin * width,
                                  from.begin() + (span.row_begin + span.n_rows) * width);
      };
      reference::expect_same(rows(out), rows(all), "span");
    }
  }
}

TEST_P(Attend, IsTheSameBitsForAnyNumberOfThreads) {
  Batch batch({{1, 1500}, {100, 30}}, KvKind::bf16, 6, 2, 64, 1);
  const std::vector<float> expected = batch.attend(*ops_);
  for (const int threads : {1, 2, 3}) {
    ThreadPool pool(threads, 0);
    const auto ops = make_cpu_ops(pool, GetParam());
    for (int again = 0; again < 2; ++again) reference::expect_same(batch.attend(*ops), expected, "attention");
  }
}

TEST_P(Attend, SurvivesScoresFarApart) {
  for (const int64_t rows : {1, 20}) {
    Batch batch({{rows, 100}}, KvKind::f32, 2, 1, 64, 1);
    for (float& x : batch.q.f32) x *= 100;  // one key takes nearly all
    const std::vector<float> out = batch.attend(*ops_);
    const AttentionSpan& span = batch.spans[0];
    for (int64_t row = 0; row < rows; ++row) {
      const std::vector<double> exact = batch.exact(span, row, 1, false);
      for (int i = 0; i < 64; ++i)
        ASSERT_NEAR(out[static_cast<size_t>((row * 2 + 1) * 64 + i)], exact[static_cast<size_t>(i)], 2e-3);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Level, Attend, testing::ValuesIn(kCpuLevels), reference::level_name);

}  // namespace
}  // namespace firstlight

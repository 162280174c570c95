// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "firstlight/base/error.h"
#include "firstlight/ops/reference_batch.h"

namespace firstlight {
namespace {

using reference::Batch;
using reference::Sequence;

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

// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "firstlight/base/error.h"
#include "firstlight/ops/reference_batch.h"
#include "firstlight/ops/test_cuda.h"

namespace firstlight {
namespace {

using reference::Batch;
using reference::GpuTensor;
using reference::OnGpu;
using reference::Sequence;
using reference::unwritten;

class AttendCuda : public reference::OfBothKinds<reference::WithGpu> {
 protected:
  std::vector<float> attend(Batch& batch) {
    ops_->end();
    std::vector<float> result = attend(batch, *ops_);
    ops_->begin({}, false);
    return result;
  }

  static std::vector<float> attend(Batch& batch, Ops& ops) {
    const OnGpu cache(batch.cache.bytes);
    const GpuTensor q(batch.q);
    GpuTensor out(unwritten(batch.n_rows, int64_t{batch.n_heads} * batch.head_dim));
    ops.begin({.ids = {}, .spans = batch.spans, .wanted = {}}, false);
    KvLayer layer = batch.cache.layer();
    layer.data = cache.data();
    ops.attend(q.view(), batch.n_heads, batch.spans, layer, out.matrix());
    ops.end();
    return out.fetch().f32;
  }

  void check(const std::vector<Sequence>& sequences, KvKind kind, int heads, int kv_heads, int d) {
    SCOPED_TRACE(testing::Message() << to_string(kind) << ", " << heads << " heads on " << kv_heads << " of " << d);
    Batch batch(sequences, kind, heads, kv_heads, d, 1);
    const std::vector<float> out = attend(batch);
    for (const AttentionSpan& span : batch.spans) {
      const bool rounded = kind == KvKind::bf16 && (d == 64 || d == 128) && span.n_rows >= 8;
      const double bound = rounded ? 1.2e-2 : 2e-5;  // weights as bf16: half a unit of 2^-8 each
      for (int64_t row = 0; row < span.n_rows; ++row) {
        if (span.n_rows > 20 && row % 7 != 0 && row != span.n_rows - 1) continue;  // the oracle is slow
        for (int head = 0; head < heads; ++head) {
          const std::vector<double> exact = batch.exact(span, row, head, rounded);
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

INSTANTIATE_TEST_SUITE_P(Kernels, AttendCuda, testing::Bool(), reference::kind_name);

TEST_P(AttendCuda, EqualsSoftmaxOverTheVisibleKeys) {
  for (const KvKind kind : {KvKind::bf16, KvKind::f32}) {
    check({{1, 0}}, kind, 2, 1, 64);
    check({{1, 63}, {1, 64}, {1, 300}}, kind, 4, 2, 64);
    check({{1, 15}, {1, 16}, {1, 17}, {1, 47}, {1, 255}, {1, 256}}, kind, 4, 2, 128);
    check({{8, 0}, {9, 60}, {7, 61}, {1, 5}}, kind, 3, 3, 64);
    check({{64, 0}}, kind, 2, 1, 64);
    check({{65, 3}}, kind, 2, 2, 128);
    check({{130, 70}, {17, 0}}, kind, 3, 1, 64);
  }
}

TEST_P(AttendCuda, EqualsSoftmaxForEveryHeadShape) {
  for (const KvKind kind : {KvKind::bf16, KvKind::f32}) {
    for (const int d : {16, 18, 64, 80, 96, 128, 256}) check({{1, 100}, {3, 62}, {21, 55}}, kind, 4, 2, d);
    for (int kv_heads = 1; kv_heads <= 8; ++kv_heads)
      check({{1, 70}, {9, 60}}, kind, kv_heads * (1 + kv_heads % 3), kv_heads, 32);
    check({{1, 70}, {9, 60}}, kind, 7, 1, 64);
    check({{1, 400}, {9, 60}}, kind, 12, 1, 128);  // more heads in a group than a block takes
    check({{1, 70}, {9, 60}}, kind, 32, 8, 128);
  }
}

TEST_P(AttendCuda, EqualsSoftmaxWhereKeysAreCutIntoChunks) {
  check({{1, 3000}, {1, 257}, {1, 0}}, KvKind::bf16, 4, 1, 128);
  check({{1, 40000}, {2, 511}}, KvKind::bf16, 3, 1, 64);
  check({{1, 8400}}, KvKind::bf16, 8, 8, 128);  // 33 chunks on an H200: one more than a warp has lanes
  check({{1, 2050}}, KvKind::bf16, 16, 4, 128);
}

// So long that blocks take chunks as they come to them.
TEST_P(AttendCuda, EqualsSoftmaxOverManyChunksOfAllSizes) {
  check({{1, 33000}, {1, 9000}}, KvKind::bf16, 4, 2, 128);
  check({{1, 17000}, {1, 40}, {1, 31000}}, KvKind::bf16, 9, 3, 64);
}

TEST_P(AttendCuda, IsTheSameBitsHoweverManyTakePart) {
  for (const int d : {64, 128}) {
    for (const std::vector<Sequence>& sequences :
         {std::vector<Sequence>{{1, 33000}},
          {{1, 9000}, {1, 300}, {1, 20000}},
          {{1, 1000}, {1, 0}},
          // An item of two sections each, and one that has a row.
          {{1, 2000}, {1, 2000}, {1, 2000}, {1, 300}, {1, 2000}, {1, 2000}, {1, 3000}, {1, 2000}}}) {
      Batch batch(sequences, KvKind::bf16, 4, 2, d, 1);
      const std::vector<float> expected = attend(batch);
      for (const int n_sharing : {2, 7, 100}) {
        const auto few = make_cuda_ops(reference::kGpu, {.load_cublaslt = false, .n_sharing = n_sharing});
        for (int again = 0; again < 3; ++again)
          reference::expect_same(attend(batch, *few), expected, "attention by few");
      }
    }
  }
}

TEST_P(AttendCuda, IsTheSameBitsForAnyOrderOfPagesAndFromRunToRun) {
  for (const KvKind kind : {KvKind::bf16, KvKind::f32}) {
    for (const int d : {64, 128, 80}) {
      const std::vector<Sequence> sequences{{1, 1700}, {33, 100}, {5, 64}, {1, 0}};
      Batch first(sequences, kind, 6, 2, d, 1);
      const std::vector<float> expected = attend(first);
      reference::expect_same(attend(first), expected, "the same again");
      for (uint32_t seed = 2; seed < 5; ++seed) {
        Batch other(sequences, kind, 6, 2, d, seed);
        ASSERT_NE(other.pages, first.pages);
        reference::expect_same(attend(other), expected, "attention");
      }
    }
  }
}

TEST_P(AttendCuda, ASequenceIsTheSameBitsAloneAndInABatch) {
  for (const KvKind kind : {KvKind::bf16, KvKind::f32}) {
    Batch batch({{1, 1700}, {40, 30}, {1, 63}, {3, 500}}, kind, 6, 2, 64, 1);
    const std::vector<float> all = attend(batch);
    const std::vector<AttentionSpan> spans = batch.spans;
    const int64_t width = 6 * 64;
    for (const AttentionSpan& span : spans) {
      batch.spans = {span};
      const std::vector<float> out = attend(batch);
      const auto rows = [&](const std::vector<float>& from) {
        return std::vector<float>(from.begin() + span.row_begin * width,
                                  from.begin() + (span.row_begin + span.n_rows) * width);
      };
      reference::expect_same(rows(out), rows(all), "span");
    }
  }
}

// Blocks take more chunks each when rows are many; of 40 rows and more, the 33rd and on are found in a second round.
TEST_P(AttendCuda, ASequenceIsTheSameBitsAmongManyOthers) {
  for (const int d : {64, 128}) {
    std::vector<Sequence> sequences(44, {1, 600});
    for (size_t i = 0; i < sequences.size(); ++i) sequences[i].position += static_cast<int64_t>(i * 29 % 64);
    sequences[3] = {1, 20000};
    sequences[35] = {1, 5000};
    sequences[43] = {1, 0};
    Batch batch(sequences, KvKind::bf16, 6, 2, d, 1);
    const std::vector<float> all = attend(batch);
    const std::vector<AttentionSpan> spans = batch.spans;
    for (const size_t i : {size_t{0}, size_t{3}, size_t{31}, size_t{32}, size_t{35}, size_t{43}}) {
      batch.spans = {spans[i]};
      const std::vector<float> out = attend(batch);
      const int64_t width = 6 * d, begin = spans[i].row_begin * width;
      for (int64_t at = begin; at < begin + width; ++at) {
        ASSERT_FALSE(std::isnan(all[static_cast<size_t>(at)]));
        ASSERT_EQ(out[static_cast<size_t>(at)], all[static_cast<size_t>(at)])
            << "sequence " << i << " of heads of " << d;
      }
    }
  }
}

// As many blocks as the GPU holds: items have parts of sections, sections, and whole rows. Alone each row's items are a
// chunk each, so that others add up what one block does here.
TEST_P(AttendCuda, ASequenceIsTheSameBitsWhoeverAddsItsChunksUp) {
  struct Case {
    int heads, kv_heads, d;
  };
  for (const Case& c : {Case{16, 8, 64}, {64, 8, 128}}) {
    std::vector<Sequence> sequences(34, {1, 2200});
    sequences[2] = {1, 0};
    sequences[5] = {1, 300};
    sequences[7] = {1, 3300};
    sequences[10] = {1, 2600};
    sequences[33] = {1, 5500};
    Batch batch(sequences, KvKind::bf16, c.heads, c.kv_heads, c.d, 1);
    const std::vector<float> all = attend(batch);
    const std::vector<AttentionSpan> spans = batch.spans;
    for (const size_t i : {size_t{1}, size_t{2}, size_t{5}, size_t{7}, size_t{10}, size_t{33}}) {
      batch.spans = {spans[i]};
      const std::vector<float> out = attend(batch);
      const int64_t width = int64_t{c.heads} * c.d, begin = spans[i].row_begin * width;
      for (int64_t at = begin; at < begin + width; ++at) {
        ASSERT_FALSE(std::isnan(all[static_cast<size_t>(at)]));
        ASSERT_EQ(out[static_cast<size_t>(at)], all[static_cast<size_t>(at)])
            << "sequence " << i << ", " << c.heads << " heads of " << c.d;
      }
    }
  }
}

TEST_P(AttendCuda, EqualsSoftmaxInABatchOfManyRows) {
  std::vector<Sequence> sequences(40, {1, 300});
  for (size_t i = 0; i < sequences.size(); ++i) sequences[i].position += static_cast<int64_t>(i * 37);
  check(sequences, KvKind::bf16, 4, 1, 128);
  check(sequences, KvKind::bf16, 8, 8, 64);
}

TEST_P(AttendCuda, SurvivesScoresFarApart) {
  for (const int64_t rows : {1, 20}) {
    for (const KvKind kind : {KvKind::bf16, KvKind::f32}) {
      Batch batch({{rows, 100}}, kind, 2, 1, 64, 1);
      for (float& x : batch.q.f32) x *= 100;  // one key takes nearly all
      const std::vector<float> out = attend(batch);
      const AttentionSpan& span = batch.spans[0];
      const bool rounded = kind == KvKind::bf16 && rows >= 8;
      for (int64_t row = 0; row < rows; ++row) {
        const std::vector<double> exact = batch.exact(span, row, 1, rounded);
        for (int i = 0; i < 64; ++i)
          ASSERT_NEAR(out[static_cast<size_t>((row * 2 + 1) * 64 + i)], exact[static_cast<size_t>(i)], 1.5e-2);
      }
    }
  }
}

TEST_P(AttendCuda, AttendsToTheWantedRowsAlone) {
  Batch batch({{20, 10}, {1, 70}, {3, 5}}, KvKind::bf16, 4, 2, 64, 1);
  const std::vector<float> all = attend(batch);
  const std::vector<AttentionSpan> wanted{{23, 1, 7, batch.spans[2].pages}};
  const OnGpu cache(batch.cache.bytes);
  const GpuTensor q(batch.q);
  GpuTensor out(unwritten(batch.n_rows, 4 * 64));
  next({.ids = {}, .spans = batch.spans, .wanted = wanted});
  KvLayer layer = batch.cache.layer();
  layer.data = cache.data();
  ops_->attend(q.view(), 4, wanted, layer, out.matrix());
  next();
  out.fetch();
  for (int64_t i = 0; i < 24 * 256; ++i) {
    const float value = out.host.f32[static_cast<size_t>(i)];
    if (i / 256 == 23) {
      ASSERT_EQ(value, all[static_cast<size_t>(i)]);
    } else {
      ASSERT_TRUE(std::isnan(value)) << "row " << i / 256 << " was written";
    }
  }
}

TEST_P(AttendCuda, RefusesSpansThatAreNotThePass) {
  Batch batch({{2, 10}}, KvKind::bf16, 2, 1, 64, 1);
  const std::vector<AttentionSpan> others = batch.spans;
  const GpuTensor q(batch.q);
  GpuTensor out(unwritten(2, 128));
  next({.ids = {}, .spans = batch.spans, .wanted = {}});
  EXPECT_THROW(ops_->attend(q.view(), 2, others, batch.cache.layer(), out.matrix()), Error);
  const std::vector<int> ids{1, 2};
  EXPECT_THROW(ops_->embed(ids, q.weight(), 0, q.matrix()), Error);
  next();
}

}  // namespace
}  // namespace firstlight

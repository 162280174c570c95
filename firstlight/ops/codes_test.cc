// SPDX-License-Identifier: Apache-2.0
// Attention on TurboQuant codes: products exact at every level, sums as the dequantised pages give them, and results
// that depend on a row's position and nothing else.
#include <algorithm>
#include <cmath>

#include "firstlight/base/error.h"
#include "firstlight/ops/codes_testing.h"

namespace firstlight {
namespace {

using reference::CodeBatch;
using reference::Sequence;

constexpr KvKind kCodes[] = {KvKind::tq8, KvKind::k8v4, KvKind::tq4, KvKind::k4v3, KvKind::tq3, KvKind::k3v2};

class AttendCodes : public reference::EachLevel {
 protected:
  /// Rows are checked at both ends and a few between: the oracle is slow.
  void check(const std::vector<Sequence>& sequences, KvKind kind, int heads, int kv_heads, int d, bool far = false,
             bool fresh_exactly = false) {
    SCOPED_TRACE(testing::Message() << to_string(kind) << ", " << heads << " heads on " << kv_heads << " of " << d);
    CodeBatch batch(sequences, kind, heads, kv_heads, d, 1, *ops_, far, 1000, false, fresh_exactly);
    const std::vector<float> out = batch.attend(*ops_);
    for (const AttentionSpan& span : batch.spans) {
      const bool rounded = rounds(DType::bf16, span.n_rows) && !far;
      for (int64_t row = 0; row < span.n_rows; ++row) {
        if (row != 0 && row != span.n_rows - 1 && row % 37 != 0) continue;
        for (const int head : {0, heads - 1}) {
          const std::vector<double> exact = batch.attended(span, row, head, rounded);
          for (int i = 0; i < d; ++i) {
            // Exact pages in a block of rows: probabilities as bf16 (as in attend_test.cc). Codes: 15 bits of q.
            ASSERT_NEAR(out[static_cast<size_t>(((span.row_begin + row) * heads + head) * d + i)],
                        exact[static_cast<size_t>(i)], rounded ? 6e-3 : 1e-4)
                << "span of " << span.n_rows << " rows at " << span.position << ", row " << row << ", head " << head
                << ", value " << i;
          }
        }
      }
    }
  }
};

TEST_P(AttendCodes, EqualsSoftmaxOverWhatThePagesHold) {
  check({{1, 0}, {1, 63}, {1, 255}, {1, 256}}, KvKind::tq4, 4, 2, 64);
  check({{1, 257}, {1, 900}, {5, 318}}, KvKind::tq4, 3, 1, 64);
  check({{9, 250}, {70, 300}, {130, 500}}, KvKind::tq4, 3, 1, 64);
  check({{64, 320}, {8, 0}, {100, 0}}, KvKind::tq4, 2, 2, 64);
}

TEST_P(AttendCodes, EqualsSoftmaxForEveryKindAndHeadShape) {
  for (const KvKind kind : kCodes) check({{1, 400}, {12, 376}}, kind, 2, 1, 64);
  for (const int d : {128, 256}) {
    check({{1, 400}, {12, 376}}, KvKind::tq4, 2, 1, d);
    check({{1, 400}, {12, 376}}, KvKind::k3v2, 2, 1, d);
    check({{1, 400}, {12, 376}}, KvKind::tq8, 2, 1, d);
  }
  for (const int group : {1, 4, 5, 8, 16}) check({{1, 330}, {10, 330}}, KvKind::tq4, group, 1, 64);
}

TEST_P(AttendCodes, EqualsSoftmaxWhereAllRowsReadLatePagesExactly) {
  for (const KvKind kind : {KvKind::tq8, KvKind::tq4, KvKind::k3v2})
    check({{300, 0}, {70, 900}, {9, 440}, {130, 639}}, kind, 3, 1, 64, false, true);
}

/// Exact pages have no weight here, so blocks of rows show their sums over codes alone.
TEST_P(AttendCodes, SumsOverCodesKeepTheirAccuracyInBlocksOfRows) {
  for (const KvKind kind : {KvKind::tq8, KvKind::tq4, KvKind::k3v2}) check({{20, 980}, {1, 700}}, kind, 2, 1, 64, true);
  check({{30, 980}}, KvKind::tq4, 2, 1, 128, true);
}

TEST_P(AttendCodes, ProductsAreExactIntegers) {
  const CpuKernels* kernels = GetParam() == CpuLevel::baseline ? kernels_baseline()
                              : GetParam() == CpuLevel::avx2   ? kernels_avx2()
                              : GetParam() == CpuLevel::avx512 ? kernels_avx512()
                                                               : kernels_avx512_bf16();
  for (const KvKind kind : kCodes) {
    for (const int d : {64, 128, 256}) {
      CodeBatch batch({{1, 400}}, kind, 2, 1, d, 1, *ops_);
      const KvLayer layer = batch.layer();
      std::mt19937 random(4);
      std::vector<int16_t> q(static_cast<size_t>(2 * d));
      for (int16_t& x : q) x = static_cast<int16_t>(static_cast<int>(random() % 32513) - 16256);
      const AttentionJob job{.group = 2, .span = &batch.spans[0], .kv = &layer, .code_q = q.data(), .n_heads = 2};
      for (int head = 0; head < 2; ++head) {
        for (int64_t page = 1; page < 4; ++page) {
          std::vector<int32_t> products(kPageTokens);
          kernels->code_products(job, 0, head, page, products.data());
          const uint8_t* at = reinterpret_cast<const uint8_t*>(layer.data) +
                              static_cast<uint64_t>(batch.spans[0].pages[page]) * layer.page_stride;
          for (int slot = 0; slot < kPageTokens; ++slot) {
            int64_t expected = 0;
            for (int i = 0; i < d; ++i) {
              const int at_4_bits = i / 2 + i % 2 * (d / 2), place = batch.shape.key_bits == 4 ? at_4_bits : i;
              expected += int64_t{q[static_cast<size_t>(head * d + place)]} *
                          reference::level_of(
                              batch.shape.key_bits,
                              turboquant::key_code(at + slot * batch.shape.key_bytes(), d, batch.shape.key_bits, i));
            }
            ASSERT_EQ(products[static_cast<size_t>(slot)], expected) << to_string(kind) << " d " << d << " " << slot;
          }
        }
      }
    }
  }
}

TEST_P(AttendCodes, PagesHoldTheSameBytesHoweverTheyWereFilled) {
  for (const KvKind kind : kCodes) {
    const std::vector<Sequence> sequences{{1, 299}, {1, 70}};
    CodeBatch expected(sequences, kind, 3, 1, 64, 1, *ops_);
    for (const int64_t chunk : {1, 3, 5, 64, 100}) {
      CodeBatch other(sequences, kind, 3, 1, 64, 1, *ops_, false, chunk);
      ASSERT_TRUE(other.codes == expected.codes) << to_string(kind) << ", chunks of " << chunk;
      ASSERT_TRUE(other.exact == expected.exact) << to_string(kind) << ", chunks of " << chunk;
    }
  }
}

TEST_P(AttendCodes, PagesHoldTheSameBytesAtEveryLevel) {
  ThreadPool pool(2, 0);
  const auto baseline = make_cpu_ops(pool, CpuLevel::baseline);
  for (const KvKind kind : kCodes) {
    CodeBatch expected({{1, 299}}, kind, 4, 2, 128, 1, *baseline), found({{1, 299}}, kind, 4, 2, 128, 1, *ops_);
    EXPECT_TRUE(found.codes == expected.codes) << to_string(kind);
  }
}

TEST_P(AttendCodes, IsTheSameBitsForAnyOrderOfPagesAndNumberOfThreads) {
  const std::vector<Sequence> sequences{{1, 1700}, {90, 290}, {5, 320}, {1, 0}};
  CodeBatch first(sequences, KvKind::tq4, 6, 2, 64, 1, *ops_);
  const std::vector<float> expected = first.attend(*ops_);
  for (uint32_t seed = 2; seed < 5; ++seed) {
    CodeBatch other(sequences, KvKind::tq4, 6, 2, 64, seed, *ops_);
    ASSERT_NE(other.pages, first.pages);
    reference::expect_same(other.attend(*ops_), expected, "attention");
  }
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads, 0);
    reference::expect_same(first.attend(*make_cpu_ops(pool, GetParam())), expected, "attention");
  }
}

TEST_P(AttendCodes, ARowIsTheSameBitsAloneAndInABatchAndWhereverItsChunkBegan) {
  CodeBatch batch({{7, 700}, {120, 390}, {1, 63}}, KvKind::k4v3, 6, 2, 64, 1, *ops_);
  const std::vector<float> all = batch.attend(*ops_);
  const std::vector<AttentionSpan> spans = batch.spans;
  const auto same_rows = [&](const AttentionSpan& part) {
    batch.spans = {part};
    const std::vector<float> out = batch.attend(*ops_);
    const auto rows = [&](const std::vector<float>& from) {
      return std::vector<float>(from.begin() + part.row_begin * 6 * 64,
                                from.begin() + (part.row_begin + part.n_rows) * 6 * 64);
    };
    reference::expect_same(rows(out), rows(all), "part");
  };
  for (const AttentionSpan& span : spans) same_rows(span);
  const auto part_of = [](const AttentionSpan& span, int64_t begin, int64_t n) {
    return AttentionSpan{span.row_begin + begin, n, span.position + begin, span.pages, span.exact};
  };
  for (int64_t row = 0; row < 7; ++row) same_rows(part_of(spans[0], row, 1));  // single rows
  for (const int64_t begin : {0, 11, 58, 64, 101}) {                           // blocks of rows
    same_rows(part_of(spans[1], begin, std::min<int64_t>(19, 120 - begin)));
  }
}

TEST_P(AttendCodes, AKeyThatIsNotANumberIsRefusedByItsPosition) {
  CodeBatch batch({{1, 100}}, KvKind::tq4, 2, 1, 64, 1, *ops_);
  for (const int64_t rows : {1, 40}) {
    for (const int column : {2 * 64 + 5, 3 * 64 + 63}) {  // of the key, of the value
      reference::Tensor qkv = reference::random_tensor(rows, 4 * 64, DType::f32, 2);
      qkv.f32[static_cast<size_t>((rows - 1) * 4 * 64 + column)] = std::nanf("");
      const AttentionSpan span{0, rows, 10, batch.spans[0].pages, batch.spans[0].exact};
      const std::vector<double> no_angles(32, 0.0);
      try {
        ops_->rope_and_store(qkv.matrix(), 2, nullptr, nullptr, 1e-5f, no_angles, {&span, 1}, batch.layer());
        ADD_FAILURE();
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::bad_input);
        EXPECT_NE(std::string(error.what()).find(std::to_string(9 + rows)), std::string::npos) << error.what();
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Level, AttendCodes, testing::ValuesIn(kCpuLevels), reference::level_name);

}  // namespace
}  // namespace firstlight

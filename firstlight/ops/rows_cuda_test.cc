// SPDX-License-Identifier: Apache-2.0
// Ops that go row by row, on a GPU: embed, rms_norm, keep_rows, rope_and_store.
#include <cmath>

#include "firstlight/base/error.h"
#include "firstlight/ops/test_cuda.h"

namespace firstlight {
namespace {

using reference::Cache;
using reference::GpuTensor;
using reference::OnGpu;
using reference::random_tensor;
using reference::Tensor;
using reference::unwritten;

class RowsCuda : public reference::WithGpu {
 protected:
  /// Checks one batch of two sequences against the definition: norm, rotation by f32 angles, and what the pages hold.
  void check_rope(KvKind kind, int heads, int kv_heads, int d, bool with_norms);
};

TEST_F(RowsCuda, EmbedCopiesTheRowsOfItsSliceAndZerosElsewhere) {
  for (const DType dtype : {DType::bf16, DType::f32}) {
    const GpuTensor table(random_tensor(10, 37, dtype, 1));
    GpuTensor out(unwritten(6, 37));
    const std::vector<int> ids{99, 100, 109, 110, 104, -1};
    next({.ids = ids, .spans = {}, .wanted = {}});
    ops_->embed(ids, table.weight(), 100, out.matrix());
    next();
    out.fetch();
    for (int64_t r = 0; r < 6; ++r) {
      const int row = ids[static_cast<size_t>(r)] - 100;
      for (int64_t c = 0; c < 37; ++c) ASSERT_EQ(out.host.at(r, c), row >= 0 && row < 10 ? table.host.at(row, c) : 0.0);
    }
  }
}

TEST_F(RowsCuda, RmsNormDividesByTheRootOfTheMeanSquare) {
  for (const DType dtype : {DType::bf16, DType::f32}) {
    for (const int64_t n : {1, 7, 16, 64, 65, 100, 576, 4096, 5004}) {
      for (const int64_t rows : {1, 3, 9, 40}) {
        const GpuTensor x(random_tensor(rows, n, DType::f32, 1, 3)), w(random_tensor(1, n, dtype, 2));
        GpuTensor out(unwritten(rows, n));
        ops_->rms_norm(x.view(), w.weight(), 1e-5f, out.matrix());
        next();
        out.fetch();
        for (int64_t r = 0; r < rows; ++r) {
          double squares = 0;
          for (int64_t c = 0; c < n; ++c) squares += x.host.at(r, c) * x.host.at(r, c);
          const double scale = 1 / std::sqrt(squares / static_cast<double>(n) + 1e-5);
          for (int64_t c = 0; c < n; ++c) {
            const double exact = x.host.at(r, c) * scale * w.host.at(0, c);
            ASSERT_NEAR(out.host.at(r, c), exact, 1e-6 * std::abs(exact) + 1e-9)
                << "row " << r << " of " << rows << ", value " << c << " of " << n;
          }
        }
      }
    }
  }
}

TEST_F(RowsCuda, KeepRowsMovesTheWantedOnesToTheFront) {
  const std::vector<int32_t> pages{0};
  const std::vector<AttentionSpan> spans{{0, 9, 0, pages.data()}, {9, 1, 0, pages.data()}, {10, 5, 0, pages.data()}};
  const std::vector<AttentionSpan> wanted{{1, 3, 1, pages.data()}, {9, 1, 0, pages.data()}, {14, 1, 4, pages.data()}};
  GpuTensor m(random_tensor(15, 67, DType::f32, 2));
  const Tensor before = m.host;
  next({.ids = {}, .spans = spans, .wanted = wanted});
  Matrix<float> kept = m.matrix(), all = m.matrix();
  ops_->keep_rows(spans, all);
  EXPECT_EQ(all.rows, 15);
  ops_->keep_rows(wanted, kept);
  EXPECT_EQ(kept.rows, 5);
  next();
  m.fetch();
  const int64_t from[] = {1, 2, 3, 9, 14};
  for (int64_t r = 0; r < 5; ++r) {
    for (int64_t c = 0; c < 67; ++c) ASSERT_EQ(m.host.at(r, c), before.at(from[r], c)) << "row " << r;
  }
}

void RowsCuda::check_rope(KvKind kind, int heads, int kv_heads, int d, bool with_norms) {
  SCOPED_TRACE(testing::Message() << to_string(kind) << ", " << heads << " + 2 * " << kv_heads << " heads of " << d);
  Cache cache(kind, kv_heads, d, 6);
  const std::vector<int32_t> first_pages{4, 1}, second_pages{2, 5, 0};
  const std::vector<AttentionSpan> spans{{0, 11, 60, first_pages.data()}, {11, 2, 190, second_pages.data()}};
  GpuTensor qkv(random_tensor(13, (heads + 2 * kv_heads) * d, DType::f32, 1));
  const Tensor before = qkv.host;
  const GpuTensor q_norm(random_tensor(1, d, DType::bf16, 2)), k_norm(random_tensor(1, d, DType::f32, 3));
  std::vector<double> frequencies(static_cast<size_t>(d / 2));
  for (size_t i = 0; i < frequencies.size(); ++i) frequencies[i] = std::pow(10000.0, -2.0 * static_cast<double>(i) / d);
  const Weight qw = q_norm.weight(), kw = k_norm.weight();
  const OnGpu pages(cache.bytes);
  KvLayer layer = cache.layer();
  layer.data = pages.data();
  next({.ids = {}, .spans = spans, .wanted = {}});
  ops_->rope_and_store(qkv.matrix(), heads, with_norms ? &qw : nullptr, with_norms ? &kw : nullptr, 1e-6f, frequencies,
                       spans, layer);
  next();
  pages.fetch(cache.bytes.data());
  qkv.fetch();
  for (const AttentionSpan& span : spans) {
    for (int64_t row = 0; row < span.n_rows; ++row) {
      const int64_t position = span.position + row, r = span.row_begin + row;
      for (int h = 0; h < heads + kv_heads; ++h) {
        const Tensor& norm = h < heads ? q_norm.host : k_norm.host;
        double squares = 0;
        for (int i = 0; i < d; ++i) squares += std::pow(before.at(r, h * d + i), 2);
        const auto normed = [&](int i) {
          return before.at(r, h * d + i) * (with_norms ? norm.at(0, i) / std::sqrt(squares / d + 1e-6) : 1.0);
        };
        for (int i = 0; i < d; ++i) {
          const int j = i % (d / 2), other = i < d / 2 ? i + d / 2 : i - d / 2;
          const double angle = static_cast<double>(static_cast<float>(frequencies[static_cast<size_t>(j)]) *
                                                   static_cast<float>(position));
          const double exact = normed(i) * std::cos(angle) + (i < d / 2 ? -1 : 1) * normed(other) * std::sin(angle);
          ASSERT_NEAR(qkv.host.at(r, h * d + i), exact, 3e-6) << "row " << r << ", head " << h << ", value " << i;
        }
      }
      for (int which = 0; which < 2; ++which) {
        for (int h = 0; h < kv_heads; ++h) {
          for (int i = 0; i < d; ++i) {
            const float value = static_cast<float>(qkv.host.at(r, (heads + which * kv_heads + h) * d + i));
            const double stored = cache.value(span.pages[position / kPageTokens], which, h, position % kPageTokens, i);
            ASSERT_EQ(stored, kind == KvKind::bf16 ? bf16_to_f32(f32_to_bf16(value)) : value);
          }
        }
      }
    }
  }
  ASSERT_TRUE(std::isnan(cache.value(4, 0, 0, 59, 0))) << "a slot before the first position was written";
  ASSERT_TRUE(std::isnan(cache.value(3, 0, 0, 0, 0))) << "a page of nobody was written";
}

TEST_F(RowsCuda, RopeRotatesAndStoresEveryHeadShape) {
  for (const KvKind kind : {KvKind::bf16, KvKind::f32}) {
    for (const int d : {16, 18, 64, 80, 96, 128}) check_rope(kind, 4, 2, d, d % 32 == 0);
    for (int kv_heads = 1; kv_heads <= 8; ++kv_heads) check_rope(kind, kv_heads * 2, kv_heads, 32, kv_heads % 2 == 0);
  }
}

TEST_F(RowsCuda, RopeAnglesFollowTheBatchAndNotTheOneBefore) {
  const OnGpu cache(std::vector<float>(2 * 64 * 16));
  const KvLayer layer{cache.data(), 2 * 64 * 16 * 4, KvKind::f32, 1, 16};
  const std::vector<int32_t> pages{0};
  const Tensor start = random_tensor(1, 48, DType::f32, 1);
  const std::vector<double> slow(8, 0.01), fast(8, 0.5);
  const auto rotated = [&](int64_t position, const std::vector<double>& frequencies) {
    GpuTensor qkv(start);
    const std::vector<AttentionSpan> spans{{0, 1, position, pages.data()}};
    next({.ids = {}, .spans = spans, .wanted = {}});
    ops_->rope_and_store(qkv.matrix(), 1, nullptr, nullptr, 0, frequencies, spans, layer);
    next();
    return qkv.fetch().f32;
  };
  const auto a = rotated(5, slow), b = rotated(6, slow), c = rotated(6, fast), again = rotated(5, slow);
  EXPECT_NE(a, b);
  EXPECT_NE(b, c);
  EXPECT_EQ(a, again);
  EXPECT_NEAR(c[0], start.at(0, 0) * std::cos(3.0) - start.at(0, 8) * std::sin(3.0), 1e-6);
}

}  // namespace
}  // namespace firstlight

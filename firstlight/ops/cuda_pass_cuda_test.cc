// SPDX-License-Identifier: Apache-2.0
// Whole passes on a GPU: what is recorded and replayed gives the bits of plain runs.
#include <algorithm>
#include <cmath>

#include "firstlight/base/error.h"
#include "firstlight/device/copy.h"
#include "firstlight/ops/sampling.h"
#include "firstlight/ops/test_cuda.h"

namespace firstlight {
namespace {

using reference::GpuTensor;
using reference::kGpu;
using reference::OnGpu;
using reference::random_tensor;
using reference::Tensor;
using reference::unwritten;

/// One layer and a head, and nothing a transformer has not: what begin() to end() sees of a model.
struct SmallModel {
  static constexpr int kDim = 128, kHeads = 2, kKvHeads = 1, kHeadDim = 64, kHidden = 96, kVocab = 88;
  static constexpr int64_t kRows = 12;
  GpuTensor table{random_tensor(kVocab, kDim, DType::bf16, 1)}, norm{random_tensor(1, kDim, DType::bf16, 2)},
      qkv_w{random_tensor((kHeads + 2 * kKvHeads) * kHeadDim, kDim, DType::bf16, 3, 0.1)},
      o_w{random_tensor(kDim, kHeads*kHeadDim, DType::bf16, 4, 0.1)},
      gate_up_w{random_tensor(2 * kHidden, kDim, DType::bf16, 5, 0.1)},
      down_w{random_tensor(kDim, kHidden, DType::bf16, 6, 0.1)};
  GpuTensor x{unwritten(kRows, kDim)}, normed{unwritten(kRows, kDim)}, qkv{unwritten(kRows, 4 * kHeadDim)},
      heads{unwritten(kRows, kDim)}, hidden{unwritten(kRows, kHidden)};
  static constexpr uint64_t kPageBytes = 2 * kKvHeads * kPageTokens * kHeadDim * 2;
  OnGpu cache{std::vector<std::byte>(40 * kPageBytes)};
  std::vector<double> frequencies = std::vector<double>(kHeadDim / 2, 0.1);

  static Matrix<float> rows(const GpuTensor& t, int64_t n) { return {t.matrix().data, n, t.host.cols, t.host.cols}; }
  static Matrix<const float> constant(Matrix<float> m) { return {m.data, m.rows, m.cols, m.stride}; }

  /// True if the pass was replayed.
  bool step(Ops& ops, const std::vector<int>& ids, const std::vector<AttentionSpan>& spans, std::vector<float>& logits,
            std::vector<Likeliest>* picks = nullptr, std::span<const Draw> draws = {}, std::span<int> drawn = {}) {
    const int64_t n = static_cast<int64_t>(ids.size());
    logits.assign(static_cast<size_t>(n * kVocab), std::nanf(""));
    const Matrix<float> out{logits.data(), n, kVocab, kVocab};
    if (picks) picks->assign(ids.size(), {});
    const std::span<Likeliest> wanted = picks ? std::span<Likeliest>(*picks) : std::span<Likeliest>();
    const bool replayed = ops.begin({ids, spans, spans, picks ? Matrix<float>{} : out, wanted, draws, drawn}, true);
    if (!replayed) {
      const KvLayer kv{cache.data(), kPageBytes, KvKind::bf16, kKvHeads, kHeadDim};
      Matrix<float> xs = rows(x, n), heads_n = rows(heads, n);
      ops.embed(ids, table.weight(), 0, xs);
      ops.rms_norm(constant(xs), norm.weight(), 1e-5f, rows(normed, n));
      ops.matmul(constant(rows(normed, n)), qkv_w.weight(), nullptr, rows(qkv, n));
      ops.rope_and_store(rows(qkv, n), kHeads, nullptr, nullptr, 1e-5f, frequencies, spans, kv);
      ops.attend({qkv.matrix().data, n, kHeads * kHeadDim, 4 * kHeadDim}, kHeads, spans, kv, heads_n);
      ops.keep_rows(spans, heads_n);
      ops.matmul_add(constant(heads_n), o_w.weight(), nullptr, xs);
      ops.rms_norm(constant(xs), norm.weight(), 1e-5f, rows(normed, n));
      ops.gate_up_silu(constant(rows(normed, n)), gate_up_w.weight(), nullptr, rows(hidden, n));
      ops.matmul_add(constant(rows(hidden, n)), down_w.weight(), nullptr, xs);
      ops.rms_norm(constant(xs), norm.weight(), 1e-5f, rows(normed, n));
      if (!draws.empty()) {
        ops.draw(constant(rows(normed, n)), table.weight(), draws, drawn, nullptr);
      } else if (picks) {
        ops.likeliest(constant(rows(normed, n)), table.weight(), 0, wanted);
      } else {
        ops.logits(constant(rows(normed, n)), table.weight(), out);
      }
    }
    ops.end();
    return replayed;
  }
};

class PassCuda : public reference::WithGpu {};

TEST_F(PassCuda, AReplayedPassGivesTheBitsOfAPlainOne) {
  ops_->end();
  for (const auto& [n, folds, any] :
       {std::tuple{1, true, false}, {3, false, false}, {12, true, false}, {12, true, true}, {1, true, true}}) {
    SCOPED_TRACE(testing::Message() << n << " rows" << (folds ? ", norms folded" : "") << (any ? ", any GPU's" : ""));
    SmallModel recorded_model, plain_model;
    const auto plain = make_cuda_ops(kGpu, {.graphs = false, .fold_norms = folds, .any_gpu = any}),
               recording = make_cuda_ops(kGpu, {.fold_norms = folds, .any_gpu = any});
    std::vector<std::vector<int32_t>> pages(static_cast<size_t>(n));
    for (int s = 0; s < n; ++s) {
      for (int p = 0; p < 3; ++p) pages[static_cast<size_t>(s)].push_back((p * n + s) * 7 % 37);
    }
    if (n > 1) pages[1] = {39, 38, 37};
    int n_replayed = 0;
    for (int position = 0; position < 140; ++position) {
      std::vector<int> ids;
      std::vector<AttentionSpan> spans;
      for (int s = 0; s < n; ++s) {
        ids.push_back((position * 5 + s * 3) % SmallModel::kVocab);
        spans.push_back({s, 1, position, pages[static_cast<size_t>(s)].data()});
      }
      std::vector<float> a, b;
      n_replayed += recorded_model.step(*recording, ids, spans, a);
      EXPECT_FALSE(plain_model.step(*plain, ids, spans, b));
      reference::expect_same(a, b, "logits");
      if (HasFatalFailure()) return;
      ASSERT_FALSE(std::isnan(a[0]));
    }
    // Contexts of 1, 2 and up to 4 pages: each runs plainly once and is recorded once; tables may move in between.
    EXPECT_GE(n_replayed, 125) << n << " rows";
  }
  ops_->begin({}, false);
}

TEST_F(PassCuda, ProductsOf1To64RowsAreOneKindAndARowIsTheSameBitsBesideAnyOthers) {
  if (std::string(ops_->name()).find("own kernels to 64 rows") == std::string::npos)
    GTEST_SKIP() << "no such products: " << ops_->name();
  ops_->end();
  const std::vector<int32_t> pages(64);  // a table of one page for each row: attention is not computed
  for (const auto& [kN, kK] : {std::pair<int64_t, int64_t>{3072, 4096}, {576, 576}, {96, 64}, {9000, 520}}) {
    const GpuTensor x(random_tensor(64, kK, DType::f32, 1)), w(random_tensor(kN, kK, DType::bf16, 2));
    std::vector<float> of_first_row;
    for (const int64_t n : {1, 2, 8, 9, 17, 33, 64}) {
      SCOPED_TRACE(testing::Message() << n << " rows, w [" << kN << ", " << kK << "]");
      const auto ops = make_cuda_ops(kGpu);
      const std::vector<int> ids(static_cast<size_t>(n), 1);
      std::vector<AttentionSpan> spans;
      for (int64_t i = 0; i < n; ++i) spans.push_back({i, 1, 0, &pages[static_cast<size_t>(i)]});
      std::vector<Likeliest> picked(ids.size());
      GpuTensor out(unwritten(n, kN));
      std::vector<float> row;
      for (int run = 0; run < 3; ++run) {  // plainly, recorded, replayed
        clear(reinterpret_cast<std::byte*>(out.matrix().data), kGpu, static_cast<uint64_t>(n * kN * 4));
        const bool replayed = ops->begin({.ids = ids, .spans = spans, .wanted = spans, .likeliest = picked}, true);
        EXPECT_EQ(replayed, run == 2);
        if (!replayed) ops->matmul({x.view().data, n, kK, kK}, w.weight(), nullptr, out.matrix());
        ops->end();
        std::vector<float> found = out.fetch().f32;
        found.resize(static_cast<size_t>(kN));
        if (run == 0) row = found;
        reference::expect_same(found, row, "the same pass again");
      }
      if (of_first_row.empty()) of_first_row = row;
      reference::expect_same(row, of_first_row, "a row beside others");
      // Which kernel it was is seen by what the sums are of: x rounded to bf16.
      double to_rounded = 0, to_exact = 0;
      for (int64_t column = 0; column < kN; column += 61) {
        const double found = static_cast<double>(row[static_cast<size_t>(column)]);
        to_rounded += std::abs(found - reference::dot(x.host, 0, w.host, column, true).value);
        to_exact += std::abs(found - reference::dot(x.host, 0, w.host, column, false).value);
      }
      EXPECT_LT(to_rounded, to_exact * 0.1);
    }
  }
  ops_->begin({}, false);
}

TEST_F(PassCuda, AReplayedPassPicksWhatLogitsSay) {
  ops_->end();
  const auto other = make_cuda_ops(kGpu), recording = make_cuda_ops(kGpu);
  SmallModel a_model, b_model;
  const std::vector<int32_t> pages{3, 9};
  int n_replayed = 0;
  for (int position = 0; position < 70; ++position) {
    const std::vector<int> ids{position % SmallModel::kVocab};
    const std::vector<AttentionSpan> spans{{0, 1, position, pages.data()}};
    std::vector<float> a, b;
    std::vector<Likeliest> picks;
    n_replayed += a_model.step(*recording, ids, spans, a, &picks);
    b_model.step(*other, ids, spans, b);
    const auto best = std::max_element(b.begin(), b.end());
    ASSERT_EQ(picks[0].id, best - b.begin()) << "position " << position;
    ASSERT_EQ(picks[0].logit, *best);
  }
  EXPECT_GE(n_replayed, 60);
  ops_->begin({}, false);
}

TEST_F(PassCuda, AReplayedPassDrawsWhatTheCpuDrawsFromItsLogits) {
  ops_->end();
  for (const int n : {1, 3, 12}) {
    const auto other = make_cuda_ops(kGpu), recording = make_cuda_ops(kGpu);
    SmallModel a_model, b_model;
    std::vector<std::vector<int32_t>> pages(static_cast<size_t>(n));
    for (int s = 0; s < n; ++s) pages[static_cast<size_t>(s)] = {s * 3, s * 3 + 1};
    std::vector<std::vector<int>> histories(static_cast<size_t>(n));
    int n_replayed = 0;
    for (int position = 0; position < 70; ++position) {
      std::vector<int> ids;
      std::vector<AttentionSpan> spans;
      std::vector<Draw> draws;
      for (int s = 0; s < n; ++s) {
        const auto at = static_cast<size_t>(s);
        ids.push_back((position * 5 + s * 3) % SmallModel::kVocab);
        spans.push_back({s, 1, position, pages[at].data()});
        histories[at].push_back(ids.back());
        const SamplingOptions options{.temperature = 0.5 * (position % 3),
                                      .top_k = position % 4 == 1 ? 20 : 0,
                                      .top_p = position % 5 == 2 ? 0.8 : 1,
                                      .min_p = position % 7 == 3 ? 0.1 : 0,
                                      .repetition_penalty = position % 2 == 0 ? 1.2 : 1,
                                      .seed = static_cast<uint64_t>(s)};
        draws.push_back({options, histories[at], static_cast<uint64_t>(position)});
      }
      std::vector<float> unused, logits;
      std::vector<int> drawn(ids.size(), -7);
      n_replayed += a_model.step(*recording, ids, spans, unused, nullptr, draws, drawn);
      b_model.step(*other, ids, spans, logits);
      for (size_t s = 0; s < ids.size(); ++s) {
        const std::span<float> row(logits.data() + s * SmallModel::kVocab, SmallModel::kVocab);
        ASSERT_EQ(drawn[s], draw_from(row, draws[s])) << "row " << s << " of " << n << ", position " << position;
      }
    }
    EXPECT_GE(n_replayed, 60) << n << " rows";
  }
  ops_->begin({}, false);
}

TEST_F(PassCuda, IsNotRecordedWhileWeightsAreMissingOrRowsAreLong) {
  ops_->end();
  const auto ops = make_cuda_ops(kGpu);
  const std::vector<int32_t> pages{0, 1};
  const std::vector<int> ids{1, 2};
  const std::vector<AttentionSpan> one{{0, 2, 5, pages.data()}}, two{{0, 1, 5, pages.data()}, {1, 1, 7, pages.data()}};
  std::vector<float> logits(200);
  for (int again = 0; again < 4; ++again) {
    EXPECT_FALSE(ops->begin({ids, one, one, {logits.data(), 2, 100, 100}}, true));
    ops->end();
    EXPECT_FALSE(ops->begin({ids, two, two, {logits.data(), 2, 100, 100}}, false));
    ops->end();
    EXPECT_FALSE(ops->begin({.ids = ids, .spans = two, .wanted = two}, true));
    ops->end();
  }
  ops_->begin({}, false);
}

TEST_F(PassCuda, GoesOnAfterAPassThatWasGivenUp) {
  ops_->end();
  SmallModel model, other;
  const auto ops = make_cuda_ops(kGpu), undisturbed = make_cuda_ops(kGpu);
  const std::vector<int32_t> pages{3};
  const std::vector<AttentionSpan> spans{{0, 1, 0, pages.data()}};
  const std::vector<int> ids{7};
  std::vector<float> a, b;
  other.step(*undisturbed, ids, spans, b);
  model.step(*ops, ids, spans, a);
  reference::expect_same(a, b, "first");
  EXPECT_FALSE(ops->begin({ids, spans, spans, {a.data(), 1, SmallModel::kVocab, SmallModel::kVocab}}, true));
  EXPECT_THROW(ops->matmul_add(model.x.view(), model.norm.weight(), nullptr, model.hidden.matrix()),
               Error);  // while it is recorded
  for (int again = 0; again < 3; ++again) {
    model.step(*ops, ids, spans, a);
    reference::expect_same(a, b, "after a pass was given up");
  }
  ops_->begin({}, false);
}

TEST(CudaOps, ADeviceThatIsNotThereIsNamed) {
  try {
    make_cuda_ops({Device::Kind::cuda, 77});
    FAIL() << "made";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("cuda:77"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace firstlight

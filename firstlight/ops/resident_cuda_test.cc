// SPDX-License-Identifier: Apache-2.0
// Recorded steps as one resident kernel, beside the same ops run one by one and beside plain double arithmetic.
#include <algorithm>
#include <cmath>

#include "firstlight/base/error.h"
#include "firstlight/ops/reference_batch.h"
#include "firstlight/ops/test_cuda.h"

namespace firstlight {
namespace {

using reference::Bounded;
using reference::expect_same;
using reference::GpuTensor;
using reference::kGpu;
using reference::OnGpu;
using reference::random_tensor;
using reference::Tensor;
using reference::unwritten;

struct Shape {
  int dim, heads, kv_heads, head_dim, hidden, vocab, n_layers = 2;
  bool biases = false;
  DType dtype = DType::bf16;
  KvKind kv = KvKind::bf16;
};

/// Layers of a transformer on random data, called as a model calls.
struct Layers {
  static constexpr int64_t kRows = 8, kPages = 400;
  struct Layer {
    GpuTensor norm1, qkv, qkv_bias, o, norm2, gate_up, down;
  };
  Shape shape;
  int64_t qkv_cols, heads_cols;
  GpuTensor table;
  std::vector<Layer> layers;
  GpuTensor x, inputs, outputs;
  uint64_t page_bytes;
  OnGpu cache;
  std::vector<double> frequencies;

  explicit Layers(const Shape& s)
      : shape(s),
        qkv_cols((s.heads + 2 * s.kv_heads) * s.head_dim),
        heads_cols(s.heads * s.head_dim),
        table(random_tensor(s.vocab, s.dim, s.dtype, 1)),
        x(unwritten(kRows, s.dim)),
        inputs(unwritten(kRows, std::max<int64_t>(s.dim, heads_cols))),
        outputs(unwritten(kRows, std::max<int64_t>(qkv_cols, s.hidden))),
        page_bytes(
            static_cast<uint64_t>(s.n_layers * 2 * s.kv_heads * kPageTokens * s.head_dim * kv_element_bytes(s.kv))),
        cache(std::vector<std::byte>(kPages * page_bytes)) {
    const double scale = 1 / std::sqrt(static_cast<double>(s.dim));
    for (uint32_t i = 0; i < static_cast<uint32_t>(s.n_layers); ++i) {
      const uint32_t seed = 10 * (i + 1);
      layers.push_back({GpuTensor(random_tensor(1, s.dim, s.dtype, seed)),
                        GpuTensor(random_tensor(qkv_cols, s.dim, s.dtype, seed + 1, scale)),
                        GpuTensor(random_tensor(1, qkv_cols, s.dtype, seed + 2, 0.5)),
                        GpuTensor(random_tensor(s.dim, heads_cols, s.dtype, seed + 3, scale)),
                        GpuTensor(random_tensor(1, s.dim, s.dtype, seed + 4)),
                        GpuTensor(random_tensor(2 * s.hidden, s.dim, s.dtype, seed + 5, scale)),
                        GpuTensor(random_tensor(s.dim, s.hidden, s.dtype, seed + 6, scale))});
    }
    for (int i = 0; i < s.head_dim / 2; ++i) frequencies.push_back(std::pow(10000.0, -2.0 * i / s.head_dim));
  }

  static Matrix<const float> constant(Matrix<float> m) { return {m.data, m.rows, m.cols, m.stride}; }
  static Matrix<float> of(const GpuTensor& t, int64_t n, int64_t cols) { return {t.matrix().data, n, cols, cols}; }

  void compute(Ops& ops, std::span<const int> ids, const std::vector<AttentionSpan>& spans, Matrix<float> logits) {
    const int64_t n = static_cast<int64_t>(ids.size());
    Matrix<float> xs = of(x, n, shape.dim), heads = of(inputs, n, heads_cols);
    const Matrix<float> normed = of(inputs, n, shape.dim), qkv = of(outputs, n, qkv_cols),
                        hidden = of(outputs, n, shape.hidden);
    ops.embed(ids, table.weight(), 0, xs);
    for (size_t i = 0; i < layers.size(); ++i) {
      const Layer& w = layers[i];
      const uint64_t of_layer = page_bytes / layers.size();
      const KvLayer kv{cache.data() + i * of_layer, page_bytes, shape.kv, shape.kv_heads, shape.head_dim};
      const Weight bias = w.qkv_bias.weight();
      ops.rms_norm(constant(xs), w.norm1.weight(), 1e-5f, normed);
      ops.matmul(constant(normed), w.qkv.weight(), shape.biases ? &bias : nullptr, qkv);
      ops.rope_and_store(qkv, shape.heads, nullptr, nullptr, 1e-5f, frequencies, spans, kv);
      ops.attend({qkv.data, n, heads_cols, qkv_cols}, shape.heads, spans, kv, heads);
      ops.matmul_add(constant(heads), w.o.weight(), nullptr, xs);
      ops.rms_norm(constant(xs), w.norm2.weight(), 1e-5f, normed);
      ops.gate_up_silu(constant(normed), w.gate_up.weight(), nullptr, hidden);
      ops.matmul_add(constant(hidden), w.down.weight(), nullptr, xs);
    }
    ops.rms_norm(constant(xs), layers[0].norm1.weight(), 1e-5f, normed);
    ops.logits(constant(normed), table.weight(), logits);
  }

  /// Logits, and in `replayed` whether the pass was a replay.
  std::vector<float> step(Ops& ops, const std::vector<int>& ids, const std::vector<AttentionSpan>& spans,
                          bool* replayed = nullptr) {
    const int64_t n = static_cast<int64_t>(ids.size());
    std::vector<float> logits(static_cast<size_t>(n * shape.vocab), std::nanf(""));
    const Matrix<float> out{logits.data(), n, shape.vocab, shape.vocab};
    const bool was = ops.begin({ids, spans, spans, out}, true);
    if (!was) compute(ops, ids, spans, out);
    ops.end();
    if (replayed) *replayed = was;
    return logits;
  }
};

class ResidentCuda : public reference::WithGpu {
 protected:
  void SetUp() override {
    WithGpu::SetUp();
    if (ops_) ops_->end();
  }
  void TearDown() override {
    if (ops_) ops_->begin({}, false);
    WithGpu::TearDown();
  }
};

bool is_resident(const Ops& ops) { return ops.name().find("one resident kernel") != std::string_view::npos; }

/// Keys and values round to bf16: where the last bits of what is rounded differ, they may differ by 2^-8, and logits by
/// what becomes of that. Anything wrong in an instruction is a multiple of the logits themselves.
void expect_alike(const std::vector<float>& got, const std::vector<float>& expected) {
  double worst = 0, sum = 0, squares = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_TRUE(std::isfinite(got[i])) << "logit " << i;
    const double apart = std::abs(double{got[i]} - expected[i]);
    worst = std::max(worst, apart);
    sum += apart;
    squares += double{expected[i]} * expected[i];
  }
  const double n = static_cast<double>(got.size()), typical = std::sqrt(squares / n);
  EXPECT_LT(worst, 0.02 * typical);
  EXPECT_LT(sum / n, 0.002 * typical);
}

/// Steps from `first` on, n rows at different positions, with resident kernels and op by op.
void compare(const Shape& shape, int n, int first, int n_steps, int apart) {
  SCOPED_TRACE(testing::Message() << n << " rows, dim " << shape.dim << ", heads of " << shape.head_dim);
  Layers a(shape), b(shape);
  const auto resident = make_cuda_ops(kGpu), plain = make_cuda_ops(kGpu, {.graphs = false});
  std::vector<std::vector<int32_t>> pages(static_cast<size_t>(n));
  for (int s = 0; s < n; ++s) {
    for (int p = 0; p < 48; ++p) pages[static_cast<size_t>(s)].push_back((p * n + s) * 7 % 397);
  }
  int n_replayed = 0;
  for (int step = 0; step < n_steps; ++step) {
    std::vector<int> ids;
    std::vector<AttentionSpan> spans;
    for (int s = 0; s < n; ++s) {
      ids.push_back((step * 5 + s * 3) % shape.vocab);
      spans.push_back({s, 1, first + step + s * apart, pages[static_cast<size_t>(s)].data()});
    }
    bool replayed = false;
    const std::vector<float> got = a.step(*resident, ids, spans, &replayed), expected = b.step(*plain, ids, spans);
    n_replayed += replayed;
    expect_alike(got, expected);
    if (testing::Test::HasFailure()) return;
  }
  EXPECT_GE(n_replayed, n_steps - 8);
  EXPECT_TRUE(is_resident(*resident)) << resident->name();
}

TEST_F(ResidentCuda, GivesWhatTheOpsGiveOneByOne) {
  for (const int n : {1, 2, 5, 8}) {
    compare({128, 2, 1, 64, 96, 88}, n, 0, 140, 0);
    compare({576, 9, 3, 64, 1536, 500}, n, 100, 30, 70);
    if (n % 4 == 1) compare({2048, 16, 4, 128, 5632, 3000}, n, 60, 12, 131);
  }
}

TEST_F(ResidentCuda, GivesWhatTheOpsGiveForGroupsOfManyHeadsAndBiases) {
  compare({1024, 16, 2, 64, 1000, 77, 2, true}, 3, 1000, 12, 500);
  compare({1536, 12, 1, 128, 2056, 1001, 1, true}, 4, 250, 12, 300);
  compare({1024, 8, 8, 128, 520, 333, 3, true}, 8, 600, 12, 200);
}

TEST_F(ResidentCuda, ALongContextIsCutAsTheOpsCutIt) { compare({512, 8, 2, 64, 512, 100, 1}, 2, 2900, 12, 60); }

/// Down's k is longer than what a lane holds of x: x is loaded anew between the stages (resident_ring_cuda.cuh).
TEST_F(ResidentCuda, EveryRunGivesTheSameBits) {
  Layers model({2048, 16, 4, 128, 5632, 3000, 4});
  for (const int n : {2, 4, 5, 8}) {
    SCOPED_TRACE(testing::Message() << n << " rows");
    const auto ops = make_cuda_ops(kGpu);
    std::vector<std::vector<int32_t>> pages(static_cast<size_t>(n));
    std::vector<int> ids;
    std::vector<AttentionSpan> spans;
    for (int s = 0; s < n; ++s) {
      for (int p = 0; p < 16; ++p) pages[static_cast<size_t>(s)].push_back((p * n + s) * 7 % 397);
      ids.push_back(7 + s);
      spans.push_back({s, 1, 37 + 113 * s, pages[static_cast<size_t>(s)].data()});
    }
    const std::vector<float> first = model.step(*ops, ids, spans);
    for (int again = 0; again < 200; ++again) {
      expect_same(model.step(*ops, ids, spans), first, "again");
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(ResidentCuda, ARowIsTheSameBitsWhateverRowsAreBesideIt) {
  const Shape shape{576, 9, 3, 64, 5000, 500};
  for (const int n : {3, 8}) {
    Layers together(shape);
    const auto ops = make_cuda_ops(kGpu);
    std::vector<std::vector<int32_t>> pages;
    for (int s = 0; s < n; ++s) pages.push_back({s * 3 + 5, s * 3 + 7});
    const auto ids_of = [](int step, int s) { return (step * 5 + s * 3) % 500; };
    std::vector<std::vector<float>> all;
    for (int step = 0; step < 6; ++step) {
      std::vector<int> ids;
      std::vector<AttentionSpan> spans;
      for (int s = 0; s < n; ++s) {
        ids.push_back(ids_of(step, s));
        spans.push_back({s, 1, 70 + step + s, pages[static_cast<size_t>(s)].data()});
      }
      all.push_back(together.step(*ops, ids, spans));
    }
    for (int s = 0; s < n; ++s) {
      Layers alone(shape);
      const auto own = make_cuda_ops(kGpu);
      for (int step = 0; step < 6; ++step) {
        const std::vector<int> ids{ids_of(step, s)};
        const std::vector<AttentionSpan> spans{{0, 1, 70 + step + s, pages[static_cast<size_t>(s)].data()}};
        const auto row = all[static_cast<size_t>(step)].begin() + s * shape.vocab;
        expect_same(alone.step(*own, ids, spans), std::vector<float>(row, row + shape.vocab), "logits");
        if (HasFatalFailure()) return;
      }
    }
  }
}

/// One product behind a norm, in double: what the kernel adds to the ops' contract is nothing.
TEST_F(ResidentCuda, AProductOfANormIsWithinTheContractOfItsExactValue) {
  for (const auto& [n, k] : {std::pair<int, int>{40, 72}, {200, 1032}, {33, 4096}, {4100, 520}}) {
    const int rows = 3;
    const Tensor x = random_tensor(rows, k, DType::f32, 1), norm = random_tensor(1, k, DType::bf16, 2),
                 w = random_tensor(n, k, DType::bf16, 3);
    GpuTensor x_gpu(x), norm_gpu(norm), w_gpu(w), normed(unwritten(rows, k));
    const auto ops = make_cuda_ops(kGpu);
    const std::vector<int32_t> pages(3);  // a table of one page for each row: attention is not computed
    const std::vector<int> ids{1, 2, 3};
    std::vector<AttentionSpan> spans;
    for (int i = 0; i < rows; ++i) spans.push_back({i, 1, 0, &pages[static_cast<size_t>(i)]});
    std::vector<float> out;
    bool replayed = false;
    for (int run = 0; run < 3; ++run) {
      out.assign(static_cast<size_t>(rows * n), std::nanf(""));
      const Matrix<float> logits{out.data(), rows, n, n};
      replayed = ops->begin({ids, spans, spans, logits}, true);
      if (!replayed) {
        ops->rms_norm(x_gpu.view(), norm_gpu.weight(), 1e-5f, normed.matrix());
        ops->logits(normed.view(), w_gpu.weight(), logits);
      }
      ops->end();
    }
    ASSERT_TRUE(replayed);
    for (int r = 0; r < rows; ++r) {
      double squares = 0;
      for (int i = 0; i < k; ++i) squares += x.at(r, i) * x.at(r, i);
      const double scale = 1 / std::sqrt(squares / k + 1e-5);
      for (int c = 0; c < n; ++c) {
        Bounded sum;
        for (int i = 0; i < k; ++i) {
          const double term = x.at(r, i) * scale * norm.at(0, i) * w.at(c, i);
          sum.value += term;
          sum.magnitude += std::abs(term);
        }
        ASSERT_NEAR(out[static_cast<size_t>(r * n + c)], sum.value, sum.magnitude * 2e-5 + 1e-9)
            << "row " << r << ", column " << c << " of [" << n << ", " << k << "]";
      }
    }
  }
}

TEST_F(ResidentCuda, WhatItCannotTakeRunsAsAGraphAndTheNameSaysWhy) {
  for (const Shape& shape :
       {Shape{128, 2, 1, 64, 96, 88, 2, false, DType::bf16, KvKind::f32}, Shape{128, 4, 2, 32, 96, 88}}) {
    Layers a(shape), b(shape);
    const auto ops = make_cuda_ops(kGpu), plain = make_cuda_ops(kGpu, {.graphs = false});
    EXPECT_TRUE(is_resident(*ops));
    const std::vector<int32_t> pages{5, 3};
    int n_replayed = 0;
    for (int position = 0; position < 12; ++position) {
      const std::vector<int> ids{position};
      const std::vector<AttentionSpan> spans{{0, 1, position, pages.data()}};
      bool replayed = false;
      expect_alike(a.step(*ops, ids, spans, &replayed), b.step(*plain, ids, spans));
      n_replayed += replayed;
    }
    EXPECT_GE(n_replayed, 7);
    EXPECT_FALSE(is_resident(*ops));
    EXPECT_NE(ops->name().find("no instruction"), std::string_view::npos) << ops->name();
  }
  const auto without = make_cuda_ops(kGpu, {.resident = false});
  EXPECT_NE(without->name().find("not asked for"), std::string_view::npos) << without->name();
}

}  // namespace
}  // namespace firstlight

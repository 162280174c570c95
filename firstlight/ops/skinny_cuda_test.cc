// SPDX-License-Identifier: Apache-2.0
// Passes of products with tensor cores that follow one another, beside plain double arithmetic: each of its steps from
// what the step before left.
#include <cmath>

#include "firstlight/base/error.h"
#include "firstlight/ops/test_cuda.h"

namespace firstlight {
namespace {

using reference::Bounded;
using reference::expect_same;
using reference::GpuTensor;
using reference::kGpu;
using reference::random_tensor;
using reference::Tensor;
using reference::unwritten;

/// What follows attention in a layer, and a product of the next one's norm.
struct Chain {
  static constexpr int64_t kDim = 2048, kHeads = 6152, kHidden = 6184, kVocab = 6145;
  static constexpr double kScale = 0.02;
  GpuTensor heads{random_tensor(64, kHeads, DType::f32, 1)}, o{random_tensor(kDim, kHeads, DType::bf16, 2, kScale)},
      norm1{random_tensor(1, kDim, DType::bf16, 3)}, gate_up{random_tensor(2 * kHidden, kDim, DType::bf16, 4, kScale)},
      down{random_tensor(kDim, kHidden, DType::bf16, 5, kScale)}, norm2{random_tensor(1, kDim, DType::bf16, 6)},
      head{random_tensor(kVocab, kDim, DType::bf16, 7, kScale)}, bias{random_tensor(1, kDim, DType::bf16, 8)};
  GpuTensor x{unwritten(64, kDim)}, normed{unwritten(64, kDim)}, hidden{unwritten(64, kHidden)}, y{unwritten(64, kDim)};

  static Matrix<float> of(const GpuTensor& t, int64_t n) { return {t.matrix().data, n, t.host.cols, t.host.cols}; }
  static Matrix<const float> view(const GpuTensor& t, int64_t n) {
    return {t.matrix().data, n, t.host.cols, t.host.cols};
  }
  /// x = heads oᵀ; y = x; y += down(mlp(norm(x))); logits of norm(y). True if the pass was a replay.
  bool step(Ops& ops, int64_t n, std::vector<float>& logits) {
    const std::vector<int> ids(static_cast<size_t>(n), 1);
    const std::vector<int32_t> pages(64);  // a table of one page for each row: attention is not computed
    std::vector<AttentionSpan> spans;
    for (int64_t i = 0; i < n; ++i) spans.push_back({i, 1, 0, &pages[static_cast<size_t>(i)]});
    logits.assign(static_cast<size_t>(n * kVocab), std::nanf(""));
    const Matrix<float> out{logits.data(), n, kVocab, kVocab};
    const bool replayed = ops.begin({ids, spans, spans, out}, true);
    if (!replayed) {
      const Weight b = bias.weight();
      ops.matmul(view(heads, n), o.weight(), &b, of(x, n));
      ops.rms_norm(view(x, n), norm1.weight(), 1e-5f, of(normed, n));
      ops.gate_up_silu(view(normed, n), gate_up.weight(), nullptr, of(hidden, n));
      ops.matmul(view(hidden, n), down.weight(), nullptr, of(y, n));
      ops.rms_norm(view(y, n), norm2.weight(), 1e-2f, of(normed, n));
      ops.logits(view(normed, n), head.weight(), out);
    }
    ops.end();
    return replayed;
  }
};

/// As reference::dot, of the norm of x's row.
Bounded dot_of_norm(const Tensor& x, int64_t row, const Tensor& weight, double eps, const Tensor& w, int64_t column) {
  double squares = 0;
  for (int64_t i = 0; i < x.cols; ++i) squares += x.at(row, i) * x.at(row, i);
  const double scale = 1 / std::sqrt(squares / static_cast<double>(x.cols) + eps);
  Bounded sum;
  for (int64_t i = 0; i < x.cols; ++i) {
    const double term = x.at(row, i) * scale * weight.at(0, i) * w.at(column, i);
    sum.value += term;
    sum.magnitude += std::abs(term);
  }
  return sum;
}

bool is_own(const Ops& ops) {
  return ops.name().find("own kernels to 64 rows, norms in them") != std::string_view::npos;
}

class SkinnyCuda : public reference::WithGpu {};

TEST_F(SkinnyCuda, ProductsBehindOneAnotherAndTheNormsBetweenThemAreWithinBf16sRounding) {
  Chain c;
  const auto ops = make_cuda_ops(kGpu);
  for (const int64_t n : {1, 8, 17, 32, 64}) {
    SCOPED_TRACE(testing::Message() << n << " rows");
    std::vector<float> logits, again;
    bool replayed = false;
    for (int run = 0; run < 3; ++run) replayed = c.step(*ops, n, logits);
    ASSERT_TRUE(replayed);
    c.x.fetch();
    c.y.fetch();
    for (const int64_t r : {int64_t{0}, n - 1}) {
      for (int64_t i = 0; i < Chain::kDim; i += 31) {
        Bounded x = reference::dot(c.heads.host, r, c.o.host, i, false);
        x.value += c.bias.host.at(0, i);
        ASSERT_NEAR(c.x.host.at(r, i), x.value, 4e-3 * x.magnitude) << "row " << r << ", column " << i;
      }
      // What gates and ups give is nowhere as f32: the product behind it says whether it was right.
      Tensor hidden{DType::f32, 1, Chain::kHidden, std::vector<float>(Chain::kHidden), {}};
      std::vector<double> bounds;
      for (int64_t i = 0; i < Chain::kHidden; ++i) {
        const Bounded gate = dot_of_norm(c.x.host, r, c.norm1.host, 1e-5, c.gate_up.host, i),
                      up = dot_of_norm(c.x.host, r, c.norm1.host, 1e-5, c.gate_up.host, Chain::kHidden + i);
        hidden.f32[static_cast<size_t>(i)] = static_cast<float>(reference::silu(gate.value) * up.value);
        bounds.push_back(5e-3 * (gate.magnitude * std::abs(up.value) + up.magnitude * std::abs(gate.value) +
                                 4e-3 * gate.magnitude * up.magnitude));
      }
      for (int64_t i = 0; i < Chain::kDim; i += 31) {
        const Bounded y = reference::dot(hidden, 0, c.down.host, i, false);
        double squares = 0;  // each value of hidden errs on its own
        for (int64_t j = 0; j < Chain::kHidden; ++j) {
          const double error = bounds[static_cast<size_t>(j)] * c.down.host.at(i, j);
          squares += error * error;
        }
        ASSERT_NEAR(c.y.host.at(r, i), y.value, 4e-3 * y.magnitude / 16 + 2 * std::sqrt(squares))
            << "row " << r << ", column " << i;
      }
      for (int64_t i = 0; i < Chain::kVocab; i += 59) {
        const Bounded exact = dot_of_norm(c.y.host, r, c.norm2.host, 1e-2, c.head.host, i);
        ASSERT_NEAR(logits[static_cast<size_t>(r * Chain::kVocab + i)], exact.value, 4e-3 * exact.magnitude)
            << "row " << r << ", column " << i;
      }
    }
    for (int run = 0; run < 20; ++run) {
      c.step(*ops, n, again);
      expect_same(again, logits, "again");
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(SkinnyCuda, ARowOfAChainIsTheSameBitsWhateverRowsAreBesideIt) {
  Chain c;
  const auto ops = make_cuda_ops(kGpu);
  std::vector<float> expected;
  for (int64_t n = 9; n <= 64; n += n == 15 || n == 16 ? 1 : n < 33 ? 3 : 31) {
    std::vector<float> logits;
    c.step(*ops, n, logits);
    logits.resize(static_cast<size_t>(9 * Chain::kVocab));
    if (expected.empty()) expected = logits;
    expect_same(logits, expected, "nine rows");
    if (HasFatalFailure()) return;
  }
}

// A norm that a product of large weights took in, and then one of another kind reads.
TEST_F(SkinnyCuda, ANormIsWrittenAfterAllForWhoCannotDivideIt) {
  Chain c;
  const int64_t n = 11, n_out = 40;
  const GpuTensor w(random_tensor(n_out, Chain::kDim, DType::f32, 9, Chain::kScale));
  GpuTensor small(unwritten(n, n_out));
  const auto ops = make_cuda_ops(kGpu);
  const std::vector<int> ids(static_cast<size_t>(n), 1);
  const std::vector<int32_t> pages(64);
  std::vector<AttentionSpan> spans;
  for (int64_t i = 0; i < n; ++i) spans.push_back({i, 1, 0, &pages[static_cast<size_t>(i)]});
  std::vector<float> logits(static_cast<size_t>(n * Chain::kVocab));
  const Matrix<float> out{logits.data(), n, Chain::kVocab, Chain::kVocab};
  ASSERT_FALSE(ops->begin({ids, spans, spans, out}, true));
  ops->matmul(Chain::view(c.heads, n), c.o.weight(), nullptr, Chain::of(c.x, n));
  ops->rms_norm(Chain::view(c.x, n), c.norm1.weight(), 1e-5f, Chain::of(c.normed, n));
  ops->matmul(Chain::view(c.normed, n), w.weight(), nullptr, small.matrix());
  ops->logits(Chain::view(c.normed, n), c.head.weight(), out);
  ops->end();
  c.x.fetch();
  small.fetch();
  for (const int64_t r : {int64_t{0}, n - 1}) {
    for (int64_t i = 0; i < n_out; ++i) {
      const Bounded exact = dot_of_norm(c.x.host, r, c.norm1.host, 1e-5, w.host, i);
      ASSERT_NEAR(small.host.at(r, i), exact.value, 1e-5 * exact.magnitude) << "row " << r << ", column " << i;
    }
    for (int64_t i = 0; i < Chain::kVocab; i += 101) {
      const Bounded exact = dot_of_norm(c.x.host, r, c.norm1.host, 1e-5, c.head.host, i);
      ASSERT_NEAR(logits[static_cast<size_t>(r * Chain::kVocab + i)], exact.value, 4e-3 * exact.magnitude);
    }
  }
  const auto other = make_cuda_ops(kGpu);
  ASSERT_FALSE(other->begin({ids, spans, spans, out}, true));
  other->matmul(Chain::view(c.heads, n), c.o.weight(), nullptr, Chain::of(c.x, n));
  other->rms_norm(Chain::view(c.x, n), c.norm1.weight(), 1e-5f, Chain::of(c.normed, n));
  other->matmul_add(Chain::view(c.heads, n), c.o.weight(), nullptr, Chain::of(c.x, n));
  if (is_own(*other)) {
    EXPECT_THROW(other->matmul(Chain::view(c.normed, n), w.weight(), nullptr, small.matrix()), Error);
  }
  other->begin({}, false);
  other->end();
}

/// No silent fall-back on Hopper. The norm between two products of theirs is part of them, and its result is nowhere.
TEST_F(SkinnyCuda, AreOwnKernelsOnHopperAndTheNameSaysSo) {
  Chain c;
  const auto ops = make_cuda_ops(kGpu);
  const std::string_view name = ops->name();
  if (name.find("NVIDIA H100") != std::string_view::npos || name.find("NVIDIA H200") != std::string_view::npos) {
    ASSERT_TRUE(is_own(*ops)) << name;
  }
  if (!is_own(*ops)) {
    EXPECT_NE(name.find("(own kernels: "), std::string_view::npos) << name;
    GTEST_SKIP() << "no own kernels on this GPU: " << name;
  }
  std::vector<float> logits;
  c.step(*ops, 12, logits);
  c.normed.fetch();
  EXPECT_TRUE(std::isnan(c.normed.host.at(0, 0))) << "a norm was a kernel";
  const auto apart = make_cuda_ops(kGpu, {.fold_norms = false});
  std::vector<float> expected;
  c.step(*apart, 12, expected);
  c.normed.fetch();
  EXPECT_FALSE(std::isnan(c.normed.host.at(0, 0)));
  for (size_t i = 0; i < logits.size(); ++i) ASSERT_NEAR(logits[i], expected[i], 0.03) << "logit " << i;
}

}  // namespace
}  // namespace firstlight

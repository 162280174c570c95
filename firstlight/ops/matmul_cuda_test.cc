// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "firstlight/base/error.h"
#include "firstlight/ops/test_cuda.h"

namespace firstlight {
namespace {

using reference::GpuTensor;
using reference::random_tensor;
using reference::Tensor;
using reference::unwritten;

class MatmulCuda : public reference::OfBothKinds<reference::WithGpu> {
 protected:
  /// With bf16 weights x keeps 8 bits of its fraction.
  static double bound_of(const Tensor& w, double magnitude) {
    return (w.dtype == DType::bf16 ? 4e-3 : 2e-6) * magnitude + 2e-6;
  }
  void check(int64_t rows, int64_t n, int64_t k, DType dtype, DType bias_dtype, bool with_bias) {
    SCOPED_TRACE(testing::Message() << rows << " rows, n " << n << ", k " << k << ", " << to_string(dtype)
                                    << (with_bias ? ", bias" : ""));
    next();
    const GpuTensor x(random_tensor(rows, k, DType::f32, 1)), w(random_tensor(n, k, dtype, 2)),
        bias(random_tensor(1, n, bias_dtype, 3));
    const Weight bias_weight = bias.weight();
    GpuTensor out(unwritten(rows, n)), sum(random_tensor(rows, n, DType::f32, 4));
    const Tensor before = sum.host;
    ops_->matmul(x.view(), w.weight(), with_bias ? &bias_weight : nullptr, out.matrix());
    ops_->matmul_add(x.view(), w.weight(), with_bias ? &bias_weight : nullptr, sum.matrix());
    next();
    out.fetch();
    sum.fetch();
    for (int64_t r = 0; r<rows; r += rows> 20 ? 7 : 1) {
      for (int64_t c = 0; c<n; c += n * k> 100000 ? 37 : 1) {
        auto exact = reference::dot(x.host, r, w.host, c, false);
        if (with_bias) exact.value += bias.host.at(0, c), exact.magnitude += std::abs(bias.host.at(0, c));
        const double bound = bound_of(w.host, exact.magnitude);
        ASSERT_NEAR(out.host.at(r, c), exact.value, bound) << "row " << r << ", column " << c;
        ASSERT_NEAR(sum.host.at(r, c), before.at(r, c) + exact.value, bound + 1e-6) << "row " << r << ", column " << c;
      }
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Kernels, MatmulCuda, testing::Bool(), reference::kind_name);

TEST_P(MatmulCuda, EqualsTheSumOfProductsForEveryNumberOfRows) {
  for (const int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 33, 64, 65, 130}) {
    check(rows, 56, 72, DType::bf16, DType::bf16, rows % 2 == 0);
    check(rows, 51, 70, DType::bf16, DType::f32, rows % 2 == 0);
    check(rows, 51, 70, DType::f32, DType::f32, rows % 2 != 0);
  }
}

TEST_P(MatmulCuda, EqualsTheSumOfProductsForEveryTail) {
  for (const int64_t n : {1, 2, 7, 8, 15, 16, 17, 31, 48, 100}) {
    for (const int64_t rows : {1, 5, 8, 20}) {
      check(rows, n, 40, DType::bf16, DType::f32, true);
      check(rows, n, 33, DType::f32, DType::bf16, true);
    }
  }
  for (const int64_t k : {1, 8, 16, 24, 32, 56, 64, 127, 128, 576, 1016, 1024, 1032, 1536, 2056}) {
    for (const int64_t rows : {1, 3, 8, 20}) {
      check(rows, 24, k, DType::bf16, DType::bf16, false);
      check(rows, 24, k, DType::f32, DType::bf16, false);
    }
  }
}

TEST_P(MatmulCuda, EqualsTheSumOfProductsInTheShapesOfRealModels) {
  check(64, 9000, 520, DType::bf16, DType::bf16, false);  // two slabs a tile, what they are added to beside them
  for (const int64_t rows : {1, 2, 8, 12}) {
    check(rows, 960, 576, DType::bf16, DType::bf16, false);
    check(rows, 576, 1536, DType::bf16, DType::bf16, true);
    check(rows, 6144, 4096, DType::bf16, DType::bf16, false);
    check(rows, 512, 14336, DType::bf16, DType::bf16, false);
    check(rows, 20000, 64, DType::bf16, DType::bf16, false);  // more tiles than blocks
  }
}

// A tile's k shared by blocks, a last tile beyond n, columns of k beyond the last box; n as ranks have it.
TEST_P(MatmulCuda, EqualsTheSumOfProductsFor9To32RowsWhereverBlocksDivideThem) {
  for (const int64_t rows : {9, 16, 17, 25, 32}) {
    check(rows, 3, 8, DType::bf16, DType::f32, true);
    check(rows, 51, 200, DType::bf16, DType::f32, true);
    check(rows, 1001, 4104, DType::bf16, DType::bf16, rows % 2 == 0);
    check(rows, 3072, 4096, DType::bf16, DType::bf16, false);
    check(rows, 4096, 2048, DType::bf16, DType::bf16, rows % 2 != 0);
  }
  check(32, 4096, 4096, DType::bf16, DType::bf16, false);
  check(32, 1028, 14336, DType::bf16, DType::f32, true);
  check(32, 6148, 2056, DType::bf16, DType::f32, true);  // a block a tile
  check(9, 20000, 712, DType::bf16, DType::f32, true);   // more tiles than blocks
}

TEST_P(MatmulCuda, WritesOnlyItsColumnsOfAStridedMatrix) {
  for (const int64_t rows : {3, 20}) {
    const int64_t n = 24, k = 40, stride = 32;
    const GpuTensor x(random_tensor(rows, k, DType::f32, 1)), w(random_tensor(n, k - 8, DType::bf16, 2));
    GpuTensor wide(Tensor{DType::f32, rows, stride, std::vector<float>(static_cast<size_t>(rows * stride), 7.0f), {}});
    ops_->matmul({x.view().data, rows, k - 8, k}, w.weight(), nullptr, {wide.matrix().data, rows, n, stride});
    next();
    wide.fetch();
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = n; c < stride; ++c) ASSERT_EQ(wide.host.at(r, c), 7.0f);
      const auto exact = reference::dot(Tensor{DType::f32, rows, k, x.host.f32, {}}, r, w.host, n - 1, false);
      ASSERT_NEAR(wide.host.at(r, n - 1), exact.value, bound_of(w.host, exact.magnitude));
    }
  }
}

TEST_P(MatmulCuda, GateUpSiluEqualsItsDefinition) {
  for (const DType dtype : {DType::bf16, DType::f32}) {
    for (const int64_t rows : {1, 2, 8, 9, 66}) {
      for (const int64_t n : {1, 16, 50, 96, 104}) {
        SCOPED_TRACE(testing::Message() << rows << " rows, n " << n << ", " << to_string(dtype));
        const int64_t k = 72;
        const GpuTensor x(random_tensor(rows, k, DType::f32, 1)), w(random_tensor(2 * n, k, dtype, 2, 0.3)),
            bias(random_tensor(1, 2 * n, DType::f32, 3));
        const Weight bias_weight = bias.weight();
        const bool with_bias = n % 16 != 0;
        GpuTensor out(unwritten(rows, n));
        ops_->gate_up_silu(x.view(), w.weight(), with_bias ? &bias_weight : nullptr, out.matrix());
        next();
        out.fetch();
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t c = 0; c < n; ++c) {
            const auto gate = reference::dot(x.host, r, w.host, c, false),
                       up = reference::dot(x.host, r, w.host, n + c, false);
            const double g = gate.value + (with_bias ? bias.host.at(0, c) : 0),
                         u = up.value + (with_bias ? bias.host.at(0, n + c) : 0);
            const double bound = 1.2 * (bound_of(w.host, gate.magnitude + 1) * (std::abs(u) + 1) +
                                        bound_of(w.host, up.magnitude + 1) * (std::abs(g) + 1));
            ASSERT_NEAR(out.host.at(r, c), reference::silu(g) * u, bound) << "row " << r << ", column " << c;
          }
        }
      }
    }
  }
}

// The product reads the copy of its rows that the norm left, and leaves one of its own, which the next product reads.
TEST_P(MatmulCuda, GateUpSiluReadsItsRowsAndLeavesItsResultToTheNextProduct) {
  for (const int64_t rows : {9, 32, 48}) {
    const int64_t k = 1032, n = 9000;  // more than the GPU's blocks take at once
    const GpuTensor x(random_tensor(rows, k, DType::f32, 1)), w(random_tensor(2 * n, k, DType::bf16, 2, 0.05)),
        ones(Tensor{DType::f32, 1, k, std::vector<float>(static_cast<size_t>(k), 1.0f), {}}),
        down(random_tensor(40, n, DType::bf16, 3));
    GpuTensor normed(unwritten(rows, k)), hidden(unwritten(rows, n)), out(unwritten(rows, 40));
    ops_->rms_norm(x.view(), ones.weight(), 1e-5f, normed.matrix());
    ops_->gate_up_silu(normed.view(), w.weight(), nullptr, hidden.matrix());
    ops_->matmul(hidden.view(), down.weight(), nullptr, out.matrix());
    next();
    normed.fetch();
    out.fetch();
    ops_->gate_up_silu(normed.view(), w.weight(), nullptr, hidden.matrix());
    next();  // nobody has read it: it is there as f32
    hidden.fetch();
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < n; c += 61) {
        const auto gate = reference::dot(normed.host, r, w.host, c, false),
                   up = reference::dot(normed.host, r, w.host, n + c, false);
        const double bound = 1.2 * (bound_of(w.host, gate.magnitude) * (std::abs(up.value) + 1) +
                                    bound_of(w.host, up.magnitude) * (std::abs(gate.value) + 1));
        ASSERT_NEAR(hidden.host.at(r, c), reference::silu(gate.value) * up.value, bound) << r << ", " << c;
      }
      for (int64_t c = 0; c < 40; ++c) {
        const auto exact = reference::dot(hidden.host, r, down.host, c, false);
        ASSERT_NEAR(out.host.at(r, c), exact.value, bound_of(down.host, exact.magnitude)) << r << ", " << c;
      }
    }
  }
}

TEST_P(MatmulCuda, SiluOfLargeValuesIsFinite) {
  const GpuTensor x(Tensor{DType::f32, 4, 1, {1e4f, -1e4f, 300.0f, -300.0f}, {}}),
      w(Tensor{DType::f32, 2, 1, {1.0f, 1e-4f}, {}});
  GpuTensor out(unwritten(4, 1));
  ops_->gate_up_silu(x.view(), w.weight(), nullptr, out.matrix());
  next();
  out.fetch();
  EXPECT_NEAR(out.host.f32[0], 1e4, 1e-2);
  EXPECT_NEAR(out.host.f32[1], 0, 1e-6);
  EXPECT_NEAR(out.host.f32[2], 9, 1e-5);
  EXPECT_NEAR(out.host.f32[3], 0, 1e-6);
}

TEST_P(MatmulCuda, ARowOfUpTo8IsTheSameBitsWhateverRowsAreBesideIt) {
  for (const DType dtype : {DType::bf16, DType::f32}) {
    for (const int64_t k : {200, 4096, 14336}) {
      const int64_t n = 104;
      const GpuTensor x(random_tensor(8, k, DType::f32, 1)), w(random_tensor(n, k, dtype, 2));
      std::vector<float> expected;
      for (int64_t rows = 1; rows <= 8; ++rows) {
        GpuTensor out(unwritten(rows, n));
        ops_->matmul({x.view().data, rows, k, k}, w.weight(), nullptr, out.matrix());
        next();
        std::vector<float> first = out.fetch().f32;
        first.resize(static_cast<size_t>(n));
        if (expected.empty()) expected = first;
        reference::expect_same(first, expected, "first row");
      }
    }
  }
}

TEST_P(MatmulCuda, ARowOf9To32IsTheSameBitsWhateverRowsAreBesideIt) {
  for (const int64_t k : {200, 4096, 14336}) {
    const int64_t n = 1500;  // not a multiple of 8: cuBLASLt does not take it
    const GpuTensor x(random_tensor(32, k, DType::f32, 1)), w(random_tensor(n, k, DType::bf16, 2));
    std::vector<float> expected, expected_silu;
    for (int64_t rows = 9; rows <= 32; ++rows) {
      GpuTensor out(unwritten(rows, n)), silu(unwritten(rows, n / 2));
      ops_->matmul({x.view().data, rows, k, k}, w.weight(), nullptr, out.matrix());
      ops_->gate_up_silu({x.view().data, rows, k, k}, w.weight(), nullptr, silu.matrix());
      next();
      std::vector<float> first = out.fetch().f32, first_silu = silu.fetch().f32;
      first.resize(static_cast<size_t>(n * 9));
      first_silu.resize(static_cast<size_t>(n / 2 * 9));
      if (expected.empty()) expected = first, expected_silu = first_silu;
      reference::expect_same(first, expected, "nine rows");
      reference::expect_same(first_silu, expected_silu, "nine rows");
    }
  }
}

TEST_P(MatmulCuda, IsTheSameBitsFromRunToRun) {
  for (const auto& [rows, n] :
       {std::pair<int64_t, int64_t>{1, 704}, {6, 704}, {8, 704}, {9, 700}, {32, 704}, {32, 700}, {150, 704}}) {
    const int64_t k = 4096;
    const GpuTensor x(random_tensor(rows, k, DType::f32, 1)), w(random_tensor(n, k, DType::bf16, 2));
    std::vector<float> expected;
    for (int again = 0; again < 5; ++again) {
      GpuTensor out(unwritten(rows, n));
      ops_->matmul(x.view(), w.weight(), nullptr, out.matrix());
      next();
      out.fetch();
      if (expected.empty()) expected = out.host.f32;
      reference::expect_same(out.host.f32, expected, "product");
    }
  }
}

TEST_P(MatmulCuda, LogitsAreInTheCallersRowsAtTheEndOfThePass) {
  for (const int64_t rows : {1, 8, 30, 150}) {
    const int64_t n = 48, k = 64, stride = 50;
    const GpuTensor x(random_tensor(rows, k, DType::f32, 1)), w(random_tensor(n, k, DType::bf16, 2));
    std::vector<float> out(static_cast<size_t>(rows * stride), 7.0f);
    ops_->logits(x.view(), w.weight(), {out.data(), rows, n, stride});
    ops_->end();
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < n; ++c) {
        const auto exact = reference::dot(x.host, r, w.host, c, false);
        ASSERT_NEAR(out[static_cast<size_t>(r * stride + c)], exact.value, bound_of(w.host, exact.magnitude));
      }
      for (int64_t c = n; c < stride; ++c) ASSERT_EQ(out[static_cast<size_t>(r * stride + c)], 7.0f);
    }
    ops_->begin({}, false);
  }
}

TEST_P(MatmulCuda, LikeliestIsTheLowestOfTheLargestLogits) {
  for (const int64_t rows : {1, 8, 30, 150}) {
    for (const int64_t n : {1, 48, 5000}) {
      const int64_t k = 64;
      const GpuTensor x(random_tensor(rows, k, DType::f32, 1));
      Tensor weights = random_tensor(n, k, DType::bf16, 2);
      for (int64_t c = n / 2; c < n; ++c) {  // the second half repeats the first: each largest is there twice
        for (int64_t i = 0; i < k && n > 1; ++i)
          weights.bf16[static_cast<size_t>(c * k + i)] = weights.bf16[static_cast<size_t>((c - n / 2) * k + i)];
      }
      const GpuTensor w(weights);
      std::vector<Likeliest> out(static_cast<size_t>(rows));
      std::vector<float> logits(static_cast<size_t>(rows * n));
      ops_->likeliest(x.view(), w.weight(), 1000, out);
      ops_->logits(x.view(), w.weight(), {logits.data(), rows, n, n});
      ops_->end();
      for (int64_t r = 0; r < rows; ++r) {
        const auto begin = logits.begin() + r * n, best = std::max_element(begin, begin + n);
        ASSERT_EQ(out[static_cast<size_t>(r)].logit, *best) << "row " << r << " of " << rows;
        ASSERT_EQ(out[static_cast<size_t>(r)].id, 1000 + (best - begin)) << "row " << r << " of " << rows;
      }
      ops_->begin({}, false);
    }
  }
  Tensor odd = random_tensor(2, 8, DType::f32, 1);
  odd.f32[3] = std::nanf("");
  const GpuTensor x(odd), w(random_tensor(300, 8, DType::bf16, 2));
  std::vector<Likeliest> out(2);
  ops_->likeliest(x.view(), w.weight(), 0, out);
  ops_->end();
  EXPECT_EQ(out[0].id, -1);
  EXPECT_GE(out[1].id, 0);
  ops_->begin({}, false);
}

// A product takes the bf16 copy that a norm left: not after somebody wrote over the norm's result.
TEST_P(MatmulCuda, TakesItsRowsAsTheyAreAndNotAsTheyWere) {
  const int64_t rows = 24, k = 64, n = 40;
  Tensor ones_on_diagonal{DType::f32, k, k, std::vector<float>(static_cast<size_t>(k * k)), {}};
  for (int64_t i = 0; i < k; ++i) ones_on_diagonal.f32[static_cast<size_t>(i * k + i)] = 1.0f;
  const GpuTensor identity(ones_on_diagonal);
  const GpuTensor x(random_tensor(rows, k, DType::f32, 1)), y(random_tensor(rows, k, DType::f32, 2)),
      ones(Tensor{DType::f32, 1, k, std::vector<float>(static_cast<size_t>(k), 1.0f), {}}),
      w(random_tensor(n, k, DType::bf16, 3));
  GpuTensor normed(unwritten(rows, k)), first(unwritten(rows, n)), second(unwritten(rows, n));
  ops_->rms_norm(x.view(), ones.weight(), 1e-5f, normed.matrix());
  ops_->matmul(normed.view(), w.weight(), nullptr, first.matrix());
  ops_->matmul_add(y.view(), identity.weight(), nullptr, normed.matrix());
  ops_->matmul(normed.view(), w.weight(), nullptr, second.matrix());
  next();
  normed.fetch();
  first.fetch();
  second.fetch();
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < n; ++c) {
      const auto now = reference::dot(normed.host, r, w.host, c, false),
                 added = reference::dot(y.host, r, w.host, c, false);
      const double bound = bound_of(w.host, now.magnitude + added.magnitude);
      ASSERT_NEAR(second.host.at(r, c), now.value, bound);
      ASSERT_NEAR(first.host.at(r, c), now.value - added.value, bound);
    }
  }
}

TEST_P(MatmulCuda, RefusesShapesThatDoNotFitAndTypesThatItCannotCompute) {
  const GpuTensor x(random_tensor(2, 8, DType::f32, 1)), w(random_tensor(4, 9, DType::f32, 2));
  GpuTensor out(unwritten(2, 4));
  EXPECT_THROW(ops_->matmul(x.view(), w.weight(), nullptr, out.matrix()), Error);
  Weight half = w.weight();
  half.cols = 8;
  half.dtype = DType::f16;
  EXPECT_THROW(ops_->matmul(x.view(), half, nullptr, out.matrix()), Error);
}

}  // namespace
}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "firstlight/base/error.h"
#include "firstlight/ops/reference.h"

namespace firstlight {
namespace {

using reference::random_tensor;
using reference::Tensor;
using reference::unwritten;

class Matmul : public reference::EachLevel {
 protected:
  void check(int64_t rows, int64_t n, int64_t k, DType dtype, bool with_bias) {
    SCOPED_TRACE(testing::Message() << rows << " rows, n " << n << ", k " << k << ", " << to_string(dtype)
                                    << (with_bias ? ", bias" : ""));
    const Tensor x = random_tensor(rows, k, DType::f32, 1), w = random_tensor(n, k, dtype, 2),
                 bias = random_tensor(1, n, dtype, 3);
    const Weight bias_weight = bias.weight();
    Tensor out = unwritten(rows, n), sum = random_tensor(rows, n, DType::f32, 4);
    const Tensor before = sum;
    ops_->matmul(x.view(), w.weight(), with_bias ? &bias_weight : nullptr, out.matrix());
    ops_->matmul_add(x.view(), w.weight(), with_bias ? &bias_weight : nullptr, sum.matrix());
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < n; ++c) {
        auto exact = reference::dot(x, r, w, c, rounds(dtype, rows));
        if (with_bias) exact.value += bias.at(0, c), exact.magnitude += std::abs(bias.at(0, c));
        const double bound = 1e-6 * exact.magnitude + 1e-6;
        ASSERT_NEAR(out.at(r, c), exact.value, bound) << "row " << r << ", column " << c;
        ASSERT_NEAR(sum.at(r, c), before.at(r, c) + exact.value, bound) << "row " << r << ", column " << c;
      }
    }
  }
};

TEST_P(Matmul, EqualsTheSumOfProductsForEveryNumberOfRows) {
  for (const int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 49, 63, 64, 65, 130}) {
    check(rows, 51, 70, DType::bf16, rows % 2 == 0);
    check(rows, 51, 70, DType::f32, rows % 2 != 0);
  }
}

TEST_P(Matmul, EqualsTheSumOfProductsForEveryTail) {
  for (const int64_t n : {1, 2, 5, 6, 7, 11, 13, 16, 17, 47, 48, 49, 96, 100}) {
    for (const int64_t rows : {1, 5, 8, 20, 40, 64}) check(rows, n, 33, n % 2 ? DType::bf16 : DType::f32, true);
  }
  for (const int64_t k : {1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 65, 127, 576}) {
    for (const int64_t rows : {1, 5, 8, 20, 40, 64}) {
      check(rows, 13, k, DType::bf16, false);
      check(rows, 13, k, DType::f32, false);
    }
  }
}

TEST_P(Matmul, WritesOnlyItsColumnsOfAStridedMatrix) {
  for (const int64_t rows : {3, 20}) {
    const int64_t n = 21, k = 40, stride = 30;
    const Tensor x = random_tensor(rows, k, DType::f32, 1), w = random_tensor(n, k, DType::bf16, 2);
    std::vector<float> wide(static_cast<size_t>(rows * stride), 7.0f);
    ops_->matmul({x.f32.data(), rows, k - 5, k}, {w.bf16.data(), DType::bf16, n, k - 5}, nullptr,
                 {wide.data(), rows, n, stride});
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = n; c < stride; ++c) ASSERT_EQ(wide[static_cast<size_t>(r * stride + c)], 7.0f);
      ASSERT_NE(wide[static_cast<size_t>(r * stride + n - 1)], 7.0f);
    }
  }
}

TEST_P(Matmul, GateUpSiluEqualsItsDefinition) {
  for (const DType dtype : {DType::bf16, DType::f32}) {
    for (const int64_t rows : {1, 2, 7, 8, 17, 64, 66}) {
      for (const int64_t n : {1, 16, 50, 97}) {
        SCOPED_TRACE(testing::Message() << rows << " rows, n " << n << ", " << to_string(dtype));
        const int64_t k = 70;
        const Tensor x = random_tensor(rows, k, DType::f32, 1), w = random_tensor(2 * n, k, dtype, 2, 0.3);
        const Tensor bias = random_tensor(1, 2 * n, DType::f32, 3);
        const Weight bias_weight = bias.weight();
        Tensor out = unwritten(rows, n);
        ops_->gate_up_silu(x.view(), w.weight(), n % 2 ? &bias_weight : nullptr, out.matrix());
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t c = 0; c < n; ++c) {
            const auto gate = reference::dot(x, r, w, c, rounds(dtype, rows)),
                       up = reference::dot(x, r, w, n + c, rounds(dtype, rows));
            const double g = gate.value + (n % 2 ? bias.at(0, c) : 0), u = up.value + (n % 2 ? bias.at(0, n + c) : 0);
            const double bound =
                2e-6 * (gate.magnitude + 1) * (std::abs(u) + 1) + 2e-6 * (up.magnitude + 1) * (std::abs(g) + 1);
            ASSERT_NEAR(out.at(r, c), reference::silu(g) * u, bound) << "row " << r << ", column " << c;
          }
        }
      }
    }
  }
}

TEST_P(Matmul, SiluOfLargeValuesIsFinite) {
  const Tensor x{DType::f32, 4, 1, {1e4f, -1e4f, 300.0f, -300.0f}, {}};
  const Tensor w{DType::f32, 2, 1, {1.0f, 1e-4f}, {}};
  Tensor out = unwritten(4, 1);
  ops_->gate_up_silu(x.view(), w.weight(), nullptr, out.matrix());
  EXPECT_NEAR(out.f32[0], 1e4, 1e-2);
  EXPECT_NEAR(out.f32[1], 0, 1e-6);
  EXPECT_NEAR(out.f32[2], 9, 1e-5);
  EXPECT_NEAR(out.f32[3], 0, 1e-6);
}

TEST_P(Matmul, ARowIsTheSameBitsWhateverRowsAreBesideIt) {
  for (const DType dtype : {DType::bf16, DType::f32}) {
    const int64_t n = 101, k = 200;
    const Tensor x = random_tensor(100, k, DType::f32, 1), w = random_tensor(n, k, dtype, 2);
    for (const int64_t first : {1, 8}) {  // the two classes: 1–7 rows, and from 8
      const std::vector<int64_t> counts =
          first == 1 ? std::vector<int64_t>{1, 2, 3, 4, 5, 6, 7} : std::vector<int64_t>{8, 9, 17, 40, 64, 65, 100};
      std::vector<float> expected;
      for (const int64_t rows : counts) {
        Tensor out = unwritten(rows, n);
        ops_->matmul({x.f32.data(), rows, k, k}, w.weight(), nullptr, out.matrix());
        out.f32.resize(static_cast<size_t>(first * n));
        if (expected.empty()) expected = out.f32;
        reference::expect_same(out.f32, expected, "first rows");
      }
    }
  }
}

TEST_P(Matmul, IsTheSameBitsForAnyNumberOfThreads) {
  for (const int64_t rows : {1, 6, 8, 150}) {
    const int64_t n = 700, k = 96;
    const Tensor x = random_tensor(rows, k, DType::f32, 1), w = random_tensor(n, k, DType::bf16, 2);
    Tensor expected = unwritten(rows, n);
    ops_->matmul(x.view(), w.weight(), nullptr, expected.matrix());
    for (const int threads : {1, 2, 3, 5}) {
      ThreadPool pool(threads, 0);
      const auto ops = make_cpu_ops(pool, GetParam());
      for (int again = 0; again < 2; ++again) {
        Tensor out = unwritten(rows, n);
        ops->matmul(x.view(), w.weight(), nullptr, out.matrix());
        reference::expect_same(out.f32, expected.f32, "product");
      }
    }
  }
}

TEST_P(Matmul, RefusesShapesThatDoNotFitAndTypesThatItCannotCompute) {
  const Tensor x = random_tensor(2, 8, DType::f32, 1), w = random_tensor(4, 9, DType::f32, 2);
  Tensor out = unwritten(2, 4);
  EXPECT_THROW(ops_->matmul(x.view(), w.weight(), nullptr, out.matrix()), Error);
  Weight half = w.weight();
  half.cols = 8;
  half.dtype = DType::f16;
  EXPECT_THROW(ops_->matmul(x.view(), half, nullptr, out.matrix()), Error);
}

INSTANTIATE_TEST_SUITE_P(Level, Matmul, testing::ValuesIn(kCpuLevels), reference::level_name);

TEST(CpuLevel, TheBestLevelWorksAndIsNamed) {
  EXPECT_TRUE(cpu_level_works(best_cpu_level()));
  ThreadPool pool(1, 0);
  EXPECT_EQ(make_cpu_ops(pool)->name(), "cpu: " + std::string(to_string(best_cpu_level())) + ", 1 thread");
}

}  // namespace
}  // namespace firstlight

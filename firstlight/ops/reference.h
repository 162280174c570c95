// SPDX-License-Identifier: Apache-2.0
// For tests only: each op in plain double arithmetic, written from its definition, and the data that tests feed it.
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "firstlight/base/half.h"
#include "firstlight/ops/cpu_ops.h"

namespace firstlight::reference {

/// A tensor with its values in double, as stored in `dtype`.
struct Tensor {
  DType dtype = DType::f32;
  int64_t rows = 0, cols = 0;
  std::vector<float> f32;
  std::vector<uint16_t> bf16;
  double at(int64_t r, int64_t c) const {
    const size_t i = static_cast<size_t>(r * cols + c);
    return dtype == DType::bf16 ? bf16_to_f32(bf16[i]) : f32[i];
  }
  Weight weight() const {
    return {dtype == DType::bf16 ? static_cast<const void*>(bf16.data()) : static_cast<const void*>(f32.data()), dtype,
            rows, cols};
  }
  Matrix<float> matrix() { return {f32.data(), rows, cols, cols}; }
  Matrix<const float> view() const { return {f32.data(), rows, cols, cols}; }
};

inline Tensor random_tensor(int64_t rows, int64_t cols, DType dtype, uint32_t seed, double scale = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal(0, scale);
  Tensor t{dtype, rows, cols, {}, {}};
  for (int64_t i = 0; i < rows * cols; ++i) {
    const float value = static_cast<float>(normal(random));
    dtype == DType::bf16 ? t.bf16.push_back(f32_to_bf16(value)) : t.f32.push_back(value);
  }
  return t;
}

/// Not a number: what an op must overwrite.
inline Tensor unwritten(int64_t rows, int64_t cols) {
  Tensor t{DType::f32, rows, cols, {}, {}};
  t.f32.assign(static_cast<size_t>(rows * cols), std::nanf(""));
  return t;
}

struct Bounded {
  double value = 0, magnitude = 0;  ///< the exact result, and the sum of its terms' magnitudes
};

/// x[row] · w[column]; x rounded to bf16 first if `rounded`.
inline Bounded dot(const Tensor& x, int64_t row, const Tensor& w, int64_t column, bool rounded) {
  Bounded sum;
  for (int64_t i = 0; i < w.cols; ++i) {
    double value = x.at(row, i);
    if (rounded) value = bf16_to_f32(f32_to_bf16(static_cast<float>(value)));
    sum.value += value * w.at(column, i);
    sum.magnitude += std::abs(value * w.at(column, i));
  }
  return sum;
}

inline double silu(double x) { return x / (1 + std::exp(-x)); }

/// Bit for bit.
inline void expect_same(const std::vector<float>& a, const std::vector<float>& b, const char* what) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    uint32_t x, y;
    std::memcpy(&x, &a[i], 4);
    std::memcpy(&y, &b[i], 4);
    ASSERT_EQ(x, y) << what << ": value " << i << " is " << a[i] << " and " << b[i];
  }
}

/// A cache of pages for one layer: every byte is a NaN until stored to, so that a read beyond the stored slots shows.
struct Cache {
  KvKind kind;
  int n_kv_heads, head_dim;
  std::vector<std::byte> bytes;
  uint64_t stride;
  Cache(KvKind of, int heads, int d, int64_t n_pages) : kind(of), n_kv_heads(heads), head_dim(d) {
    stride = static_cast<uint64_t>(2 * heads * kPageTokens * d * (of == KvKind::bf16 ? 2 : 4)) +
             256;  // pages of other layers between; rows of 128 numbers at multiples of their size
    bytes.assign(stride * static_cast<uint64_t>(n_pages), std::byte{0xff});
  }
  KvLayer layer() { return {bytes.data(), stride, kind, n_kv_heads, head_dim}; }
  std::byte* slot(int32_t page, int which, int head, int64_t at) {
    const int64_t element = kind == KvKind::bf16 ? 2 : 4;
    return bytes.data() + static_cast<uint64_t>(page) * stride +
           ((int64_t{which} * n_kv_heads + head) * kPageTokens + at) * head_dim * element;
  }
  double value(int32_t page, int which, int head, int64_t at, int64_t i) {
    if (kind == KvKind::bf16) {
      uint16_t x;
      std::memcpy(&x, slot(page, which, head, at) + i * 2, 2);
      return bf16_to_f32(x);
    }
    float x;
    std::memcpy(&x, slot(page, which, head, at) + i * 4, 4);
    return x;
  }
  void set(int32_t page, int which, int head, int64_t at, int64_t i, float value) {
    if (kind == KvKind::bf16) {
      const uint16_t x = f32_to_bf16(value);
      std::memcpy(slot(page, which, head, at) + i * 2, &x, 2);
    } else {
      std::memcpy(slot(page, which, head, at) + i * 4, &value, 4);
    }
  }
};

/// Runs each test at every level; what the machine lacks is skipped and shown.
class EachLevel : public testing::TestWithParam<CpuLevel> {
 protected:
  void SetUp() override {
    if (!cpu_level_works(GetParam())) GTEST_SKIP() << "this processor has no " << to_string(GetParam());
    ops_ = make_cpu_ops(pool_, GetParam());
  }
  bool rounds(DType dtype, int64_t rows) const {
    return GetParam() == CpuLevel::avx512_bf16 && dtype == DType::bf16 && rows >= 8;
  }
  ThreadPool pool_{2, 0};
  std::unique_ptr<Ops> ops_;
};
inline std::string level_name(const testing::TestParamInfo<CpuLevel>& info) {
  return std::string(to_string(info.param));
}

}  // namespace firstlight::reference

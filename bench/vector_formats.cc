// SPDX-License-Identifier: Apache-2.0
#include "bench/vector_formats.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <random>

#include "firstlight/quant/turboquant_oracle.h"

namespace firstlight {
namespace {

constexpr int kMaxDim = 256;

/// The nearest number of a small float type, ties to even: `mantissa` bits behind the point, exponents from `least` on,
/// sizes up to `most`.
float nearest_float(float x, int mantissa, int least, float most) {
  const float size = std::min(std::abs(x), most);
  if (size == 0) return 0;
  const float step = std::ldexp(1.0f, std::max(std::ilogb(size), least) - mantissa);
  return std::copysign(std::min(most, std::nearbyint(size / step) * step), x);
}
float as_f16(float x) { return nearest_float(x, 10, -14, 65504); }
float as_e4m3(float x) { return nearest_float(x, 3, -6, 448); }
float as_e2m1(float x) { return nearest_float(x, 1, 0, 6); }

float largest(const float* x, int n) {  // with its sign
  return *std::max_element(x, x + n, [](float a, float b) { return std::abs(a) < std::abs(b); });
}

void round_block(float* x, int bits) {
  constexpr int kBlock = 32;
  const float top = largest(x, kBlock);
  const float scale = as_f16(bits == 8 ? std::abs(top) / 127 : top / -8);
  for (int i = 0; i < kBlock; ++i) {
    const float z = scale == 0 ? 0 : x[i] / scale;
    x[i] = scale * (bits == 8 ? std::round(z) : std::clamp(std::floor(z + 8.5f), 0.0f, 15.0f) - 8);
  }
}

void round_nvfp4(float* x) {
  constexpr int kBlock = 16;
  const float scale = as_e4m3(std::abs(largest(x, kBlock)) / 6);
  for (int i = 0; i < kBlock; ++i) x[i] = scale == 0 ? 0 : scale * as_e2m1(x[i] / scale);
}

double square(const float* x, int n) {
  double sum = 0;
  for (int i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  return sum;
}

/// Its own inverse.
void hadamard(float* x, int n) {
  for (int h = 1; h < n; h *= 2) {
    for (int i = 0; i < n; ++i) {
      if (i & h) continue;
      const float a = x[i], b = x[i + h];
      x[i] = a + b;
      x[i + h] = a - b;
    }
  }
  for (int i = 0; i < n; ++i) x[i] /= std::sqrt(static_cast<float>(n));
}

}  // namespace

VectorCodec::VectorCodec(const VectorFormat& format, int head_dim) : format_(format), dim_(head_dim) {
  turboquant::require_head_dim(head_dim);
  const bool prod = format.rounding == Rounding::prod;
  if (!prod && format.rounding != Rounding::unbiased && format.rounding != Rounding::norm) return;
  for (const double level : turboquant::oracle::lloyd_max(head_dim, format.bits - (prod ? 1 : 0)).levels)
    levels_.push_back(static_cast<float>(level));
  for (size_t k = 1; k < levels_.size(); ++k) borders_.push_back((levels_[k - 1] + levels_[k]) / 2);
  if (!prod) return;
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  projection_.resize(static_cast<size_t>(head_dim * head_dim));
  for (float& each : projection_) each = normal(random);
}

void VectorCodec::round(const turboquant::Signs& signs, float* x) const {
  switch (format_.turning) {
    case Turning::none:
      return round_turned(x);
    case Turning::hadamard:
      hadamard(x, dim_);
      round_turned(x);
      return hadamard(x, dim_);
    case Turning::signed_rounds:
      turboquant::codec().rotate(dim_, signs, x, x);
      round_turned(x);
      return turboquant::codec().unrotate(dim_, signs, x, x);
  }
}

void VectorCodec::round_turned(float* y) const {
  std::array<float, kMaxDim> c;
  const double norm2 = square(y, dim_);
  switch (format_.rounding) {
    case Rounding::unbiased:
    case Rounding::norm: {
      if (norm2 == 0) return;
      round_to_levels(y, c.data());
      double along = 0;
      for (int i = 0; i < dim_; ++i) along += static_cast<double>(y[i]) * c[static_cast<size_t>(i)];
      const double scale = format_.rounding == Rounding::norm ? std::sqrt(norm2 / dim_) : norm2 / along;
      for (int i = 0; i < dim_; ++i) y[i] = static_cast<float>(scale * c[static_cast<size_t>(i)]);
      return;
    }
    case Rounding::prod:
      if (norm2 > 0) round_prod(y);
      return;
    case Rounding::blocks:
      for (int i = 0; i < dim_; i += 32) round_block(y + i, format_.bits);
      return;
    case Rounding::e4m3:
      for (int i = 0; i < dim_; ++i) y[i] = as_e4m3(y[i]);
      return;
    case Rounding::nvfp4:
      for (int i = 0; i < dim_; i += 16) round_nvfp4(y + i);
      return;
  }
}

/// c: the nearest levels, of y scaled to coordinates of variance 1.
void VectorCodec::round_to_levels(const float* y, float* c) const {
  const auto unit = static_cast<float>(std::sqrt(dim_ / square(y, dim_)));
  for (int i = 0; i < dim_; ++i) {
    const float size = std::abs(y[i]) * unit;
    size_t k = 0;
    while (k < borders_.size() && size > borders_[k]) ++k;
    c[i] = std::copysign(levels_[k], y[i]);
  }
}

/// Its inner products are those that algorithm 2 estimates: it is linear in the other vector.
void VectorCodec::round_prod(float* y) const {
  std::array<float, kMaxDim> coarse, rest;
  const auto n = static_cast<size_t>(dim_);
  const auto scale = static_cast<float>(std::sqrt(square(y, dim_) / dim_));
  round_to_levels(y, coarse.data());
  for (size_t i = 0; i < n; ++i) rest[i] = y[i] - scale * coarse[i];
  const auto worth = static_cast<float>(std::sqrt(square(rest.data(), dim_) * std::acos(-1.0) / 2) / dim_);
  for (size_t i = 0; i < n; ++i) y[i] = scale * coarse[i];
  for (size_t r = 0; r < n; ++r) {
    const float* row = projection_.data() + r * n;
    float sum = 0;
    for (size_t i = 0; i < n; ++i) sum += row[i] * rest[i];
    const float step = sum < 0 ? -worth : worth;
    for (size_t i = 0; i < n; ++i) y[i] += step * row[i];
  }
}

double VectorCodec::bytes() const {
  const double d = dim_, bits = format_.bits;
  switch (format_.rounding) {
    case Rounding::unbiased:
    case Rounding::norm:
      return d * bits / 8 + 2;
    case Rounding::prod:
      return d * bits / 8 + 4;
    case Rounding::blocks:
      return d * bits / 8 + d / 32 * 2;
    case Rounding::e4m3:
      return d;
    case Rounding::nvfp4:
      return d / 2 + d / 16;
  }
  return 0;
}

double VectorCodec::distortion() const {
  std::mt19937_64 random(2);
  std::normal_distribution<float> normal;
  double wrong = 0, all = 0;
  for (int n = 0; n < 32768; ++n) {
    std::array<float, kMaxDim> x, y;
    for (float& each : x) each = normal(random);
    y = x;
    round(turboquant::signs_of(1, n, 0, turboquant::Side::key), y.data());
    all += square(x.data(), dim_);
    for (size_t i = 0; i < static_cast<size_t>(dim_); ++i) y[i] -= x[i];
    wrong += square(y.data(), dim_);
  }
  return wrong / all;
}

}  // namespace firstlight

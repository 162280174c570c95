// SPDX-License-Identifier: Apache-2.0
// For tests: TurboQuant as the paper has it (arXiv 2504.19874), in double, independent of the codec: Lloyd-Max
// codebooks for a coordinate of a random unit vector, algorithm 1 (TQ_mse) and algorithm 2 (TQ_prod, with QJL).
#pragma once
#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

namespace firstlight::turboquant::oracle {

using Vector = std::vector<double>;

inline double dot(const Vector& a, const Vector& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}
inline double norm(const Vector& a) { return std::sqrt(dot(a, a)); }

inline Vector gaussian(int d, std::mt19937_64& random) {
  std::normal_distribution<double> normal;
  Vector x(static_cast<size_t>(d));
  for (double& each : x) each = normal(random);
  return x;
}
/// Uniform on the unit sphere.
inline Vector unit(int d, std::mt19937_64& random) {
  Vector x = gaussian(d, random);
  const double n = norm(x);
  for (double& each : x) each /= n;
  return x;
}
/// A unit vector whose inner product with the unit vector x is rho.
inline Vector partner(const Vector& x, double rho, std::mt19937_64& random) {
  Vector y = gaussian(static_cast<int>(x.size()), random);
  const double along = dot(x, y);
  for (size_t i = 0; i < y.size(); ++i) y[i] -= along * x[i];
  const double n = norm(y);
  for (size_t i = 0; i < y.size(); ++i) y[i] = rho * x[i] + std::sqrt(1 - rho * rho) * y[i] / n;
  return y;
}

struct LloydMax {
  Vector levels;  ///< the positive half, for coordinates of variance 1
  double mse;     ///< d * E[(x - c)²] of a coordinate of a unit vector
};

/// Boundaries are midpoints, levels are means between them, in turns, on the density (1 - x²/d)^((d-3)/2). Integrals of
/// 1, x, x² by Simpson's rule on a grid of 2^17 steps, linear between its points.
inline LloydMax lloyd_max(int d, int bits) {
  constexpr int kSteps = 1 << 17;
  const double end = std::min(std::sqrt(static_cast<double>(d)), 12.0), h = end / kSteps;
  const auto density = [&](double x) { return std::pow(std::max(0.0, 1 - x * x / d), (d - 3) / 2.0); };
  std::vector<double> area(kSteps + 1), first(kSteps + 1), second(kSteps + 1);
  for (int i = 0; i < kSteps; ++i) {
    const double a = i * h, m = a + h / 2, b = a + h, fa = density(a), fm = density(m), fb = density(b);
    area[static_cast<size_t>(i) + 1] = area[static_cast<size_t>(i)] + h / 6 * (fa + 4 * fm + fb);
    first[static_cast<size_t>(i) + 1] = first[static_cast<size_t>(i)] + h / 6 * (a * fa + 4 * m * fm + b * fb);
    second[static_cast<size_t>(i) + 1] =
        second[static_cast<size_t>(i)] + h / 6 * (a * a * fa + 4 * m * m * fm + b * b * fb);
  }
  const auto at = [&](const std::vector<double>& integral, double x) {
    const double place = std::min(x / h, static_cast<double>(kSteps));
    const auto i = std::min(static_cast<size_t>(place), static_cast<size_t>(kSteps) - 1);
    return integral[i] + (place - static_cast<double>(i)) * (integral[i + 1] - integral[i]);
  };
  const int n = 1 << (bits - 1);
  LloydMax book{Vector(static_cast<size_t>(n)), 0};
  for (int k = 0; k < n; ++k) book.levels[static_cast<size_t>(k)] = (k + 0.5) * 3.0 / n;
  Vector edges(static_cast<size_t>(n) + 1, 0.0);
  for (int turn = 0; turn < 4000; ++turn) {
    for (size_t k = 1; k < book.levels.size(); ++k) edges[k] = (book.levels[k - 1] + book.levels[k]) / 2;
    edges.back() = end;
    for (size_t k = 0; k < book.levels.size(); ++k) {
      book.levels[k] = (at(first, edges[k + 1]) - at(first, edges[k])) / (at(area, edges[k + 1]) - at(area, edges[k]));
    }
  }
  double captured = 0;
  for (size_t k = 0; k < book.levels.size(); ++k) {
    captured += book.levels[k] * book.levels[k] * (at(area, edges[k + 1]) - at(area, edges[k]));
  }
  book.mse = (second.back() - captured) / area.back();
  return book;
}

/// Algorithm 1 without its rotation (for inputs uniform on the sphere): nearest level, scaled by the norm.
inline Vector tq_mse(const Vector& x, const LloydMax& book) {
  const double n = norm(x), unit = std::sqrt(static_cast<double>(x.size()));
  Vector out(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const double z = std::abs(x[i]) * unit / n;
    double best = book.levels[0];
    for (const double level : book.levels) best = std::abs(level - z) < std::abs(best - z) ? level : best;
    out[i] = std::copysign(best, x[i]) * n / unit;
  }
  return out;
}

/// Algorithm 2: ⟨y, x⟩ estimated from TQ_mse at one bit less and the signs of a Gaussian projection of what is left.
inline double tq_prod(const Vector& y, const Vector& x, const LloydMax& book_of_one_bit_less,
                      const std::vector<Vector>& projection) {
  const Vector coarse = tq_mse(x, book_of_one_bit_less);
  Vector left(x.size());
  for (size_t i = 0; i < x.size(); ++i) left[i] = x[i] - coarse[i];
  double sum = 0;
  for (const Vector& row : projection) sum += dot(row, y) * (dot(row, left) < 0 ? -1 : 1);
  return dot(y, coarse) + norm(left) * std::sqrt(std::acos(-1.0) / 2) / static_cast<double>(x.size()) * sum;
}

}  // namespace firstlight::turboquant::oracle

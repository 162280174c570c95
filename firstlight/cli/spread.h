// SPDX-License-Identifier: Apache-2.0
// A measurement's middle and its ends.
#pragma once
#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

namespace firstlight::cli {

/// Of at least one value.
struct Spread {
  explicit Spread(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    const size_t n = values.size();
    median = n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
    least = values.front();
    most = values.back();
  }
  double median = 0, least = 0, most = 0;
};

/// y = intercept + slope · x by least squares, of at least two different x.
struct Line {
  struct Point {
    double x = 0, y = 0;
  };
  explicit Line(std::span<const Point> points) {
    double x = 0, y = 0, xx = 0, xy = 0;
    const auto n = static_cast<double>(points.size());
    for (const Point& p : points) x += p.x / n, y += p.y / n;
    for (const Point& p : points) xx += (p.x - x) * (p.x - x), xy += (p.x - x) * (p.y - y);
    slope = xy / xx;
    intercept = y - slope * x;
  }
  double slope = 0, intercept = 0;
};

}  // namespace firstlight::cli

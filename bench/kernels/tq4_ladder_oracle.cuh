// SPDX-License-Identifier: Apache-2.0
// What the ladder's steps are checked against: attention of one query head in double, from the format's description.
#pragma once
#include <cuda_fp16.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "firstlight/quant/turboquant.h"
#include "firstlight/quant/turboquant_page.h"

namespace firstlight::ladder {

using Numbers = std::vector<double>;

inline Numbers hadamard(const Numbers& x) {
  Numbers y(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    for (size_t j = 0; j < x.size(); ++j) y[i] += std::popcount(i & j) % 2 == 0 ? x[j] : -x[j];
  }
  return y;
}
inline void change_signs(const turboquant::Signs& signs, int round, Numbers& x) {
  for (size_t i = 0; i < x.size(); ++i) {
    if (signs.bits[round][i / 64] >> (i % 64) & 1u) x[i] = -x[i];
  }
}
/// Two rounds, as head_dim 128 has them; `back`: the other way.
inline Numbers rotated(const turboquant::Signs& signs, Numbers x, bool back = false) {
  for (int i = 0; i < 2; ++i) {
    if (!back) change_signs(signs, i, x);
    x = hadamard(x);
    if (back) change_signs(signs, 1 - i, x);
  }
  for (double& each : x) each /= static_cast<double>(x.size());
  return x;
}

/// A head's page on the host: codes, or keys and values as they are.
struct PageOnHost {
  std::vector<uint8_t> codes;
  std::vector<double> keys, values;  ///< [slot, head_dim]: an exact page; else empty
};

inline double level(uint32_t code) {
  constexpr int kSizes[] = {3, 9, 15, 21, 28, 36, 46, 60};
  return code < 8 ? kSizes[code] : -kSizes[code - 8];
}

/// Σ softmax(q · key / √head_dim) value over all tokens of `pages`; codes hold rotated keys and values, and their sum
/// is rotated back unless `value_signs` is null: then there is no exact page.
inline Numbers attend_in_double(const Numbers& q, const Numbers& rotated_q, const turboquant::Signs* value_signs,
                                const std::vector<PageOnHost>& pages) {
  const int dim = static_cast<int>(q.size());
  const turboquant::PageShape shape{dim, 4, 4};
  const auto scale = [&](const PageOnHost& page, int at, int slot) {
    return static_cast<double>(__half2float(reinterpret_cast<const __half*>(page.codes.data() + at)[slot])) / 64;
  };
  Numbers scores, of_codes(q.size()), exact(q.size());
  for (const PageOnHost& page : pages) {
    for (int slot = 0; slot < turboquant::kPageSlots; ++slot) {
      double score = 0;
      for (int i = 0; i < dim; ++i) {
        const uint8_t* key = page.codes.data() + slot * shape.key_bytes();
        score += page.keys.empty() ? rotated_q[i] * level(turboquant::key_code(key, dim, 4, i))
                                   : q[i] * page.keys[slot * dim + i];
      }
      if (page.keys.empty()) score *= scale(page, shape.key_scales_at(), slot);
      scores.push_back(score / std::sqrt(static_cast<double>(dim)));
    }
  }
  const double top = *std::max_element(scores.begin(), scores.end());
  double total = 0;
  for (size_t n = 0; n < scores.size(); ++n) {
    const PageOnHost& page = pages[n / turboquant::kPageSlots];
    const int slot = static_cast<int>(n % turboquant::kPageSlots);
    const double weight = std::exp(scores[n] - top);
    total += weight;
    for (int i = 0; i < dim; ++i) {
      if (!page.values.empty()) {
        exact[i] += weight * page.values[slot * dim + i];
        continue;
      }
      const uint8_t* quad = page.codes.data() + shape.values_at() + slot / turboquant::kQuad * shape.quad_bytes();
      of_codes[i] += weight * scale(page, shape.value_scales_at(), slot) *
                     level(turboquant::value_code(quad, dim, 4, slot % turboquant::kQuad, i));
    }
  }
  if (value_signs) of_codes = rotated(*value_signs, of_codes, true);
  for (size_t i = 0; i < exact.size(); ++i) exact[i] = (exact[i] + of_codes[i]) / total;
  return exact;
}

}  // namespace firstlight::ladder

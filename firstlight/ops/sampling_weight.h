// SPDX-License-Identifier: Apache-2.0
// A token's share of a row in whole numbers: one text for CPU and GPU, so that both give the same bits. Sums of whole
// numbers do not depend on their order, so neither does what is drawn: not on the number of threads, nor on the device.
#pragma once
#include <cstdint>
#include <cstring>

#include "firstlight/base/host_device.h"

namespace firstlight::sampling {

/// The likeliest token weighs 2^44; one below 2^-44 of it is never drawn. 2^19 tokens, the most that
/// a model may have, add up to at most 2^63.
inline constexpr int kWeightBits = 44;
inline constexpr unsigned kRoots = 1024;

/// a b / 2^64, rounded down.
FIRSTLIGHT_HD inline uint64_t high_product(uint64_t a, uint64_t b) {
#if defined(__CUDA_ARCH__)
  return __umul64hi(a, b);
#else
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
#endif
}

/// 2^63 · 2^-(i / 1024) for i < 1024: the exponential's series, whose terms fall below 2^-63 at the 16th.
FIRSTLIGHT_HD inline uint64_t root(unsigned i) {
  constexpr uint64_t kTerms[] = {0x70db,
                                 0x98a4b,
                                 0xc0b0c9,
                                 0xe1deb28,
                                 0xf465639a,
                                 0xf267a8ac5,
                                 0xda929e9caf,
                                 0xb160111d2e4,
                                 0x7ff2ff1622c3,
                                 0x50c244be1b1e1,
                                 0x2bb0ffcf14ce62,
                                 0x13b2ab6fba4e772,
                                 0x71ac235c1282fe2,
                                 0x1ebfbdff82c58ea8,
                                 0x58b90bfbe8e7bcd5};  // 2^63 ln(2)^n / n!
  const uint64_t x = static_cast<uint64_t>(i) << 54;
  uint64_t sum = 0;
  for (const uint64_t term : kTerms) sum = term - high_product(x, sum);
  return (uint64_t{1} << 63) - high_product(x, sum);
}

/// What of a row decides about a token's weight.
struct Scale {
  float max = 0;      ///< the row's largest logit, finite
  double powers = 0;  ///< powers of two that a logit's distance of 1 is worth: log2(e) / temperature
  FIRSTLIGHT_HD static double powers_of(double temperature) { return 1.4426950408889634 / temperature; }

  /// ⌊2^44 · 2^-((max − logit) · powers)⌋, for a logit that is at most max; the exponential is good to 2^-50. `roots`:
  /// root(i) for each i. No sum has a product in it, so no compiler can fuse one.
  FIRSTLIGHT_HD uint64_t weight(float logit, const uint64_t* roots) const {
    const double distance = static_cast<double>(max) - static_cast<double>(logit);
    if (!(distance > 0)) return uint64_t{1} << kWeightBits;
    const double power = distance * powers;
    if (!(power < kWeightBits + 1)) return 0;
    const auto fixed = static_cast<uint64_t>(power * 0x1p57);
    const uint64_t fraction = fixed << 7, rest = fraction & ((uint64_t{1} << 54) - 1);
    uint64_t sum = 0x71ac235c1282fe2 - high_product(rest, 0x13b2ab6fba4e772);  // as in root()
    sum = 0x1ebfbdff82c58ea8 - high_product(rest, sum);
    sum = 0x58b90bfbe8e7bcd5 - high_product(rest, sum);
    sum = (uint64_t{1} << 63) - high_product(rest, sum);
    return high_product(roots[fraction >> 54], sum) >> (62 - kWeightBits + (fixed >> 57));
  }
};

/// A logit as a whole number of the same order; −0 is 0.
FIRSTLIGHT_HD inline uint32_t order_of(float logit) {
  const float x = logit + 0.0f;
  uint32_t bits = 0;
  memcpy(&bits, &x, sizeof(bits));
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/// The repetition penalty of one token. The two are rounded as IEEE says, on a GPU, too.
FIRSTLIGHT_HD inline float penalised(float logit, float penalty) {
  return logit < 0 ? logit * penalty : logit / penalty;
}

/// Top-p keeps the likeliest tokens while those before hold less than this of `total`; min-p what weighs as much.
FIRSTLIGHT_HD inline uint64_t top_p_share(double top_p, uint64_t total) {
  const double share = top_p * static_cast<double>(total);
  const auto whole = static_cast<uint64_t>(share);
  const uint64_t up = whole + (static_cast<double>(whole) < share ? 1 : 0);
  return up < 1 ? 1 : up > total ? total : up;
}
FIRSTLIGHT_HD inline uint64_t least_weight(double min_p) {
  const double bound = min_p * 0x1p44;
  const auto whole = static_cast<uint64_t>(bound);
  return whole + (static_cast<double>(whole) < bound ? 1 : 0);
}
/// Where in [0, total) a draw of 53 random bits (the upper ones of 64) falls: in the first token with which the sum by
/// id exceeds this.
FIRSTLIGHT_HD inline uint64_t drawn_share(uint64_t random, uint64_t total) { return high_product(random, total); }

}  // namespace firstlight::sampling

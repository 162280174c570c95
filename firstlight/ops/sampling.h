// SPDX-License-Identifier: Apache-2.0
// From one row of logits to a token: the filters of transformers, and draws that depend on a seed and a counter only.
#pragma once
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace firstlight {

/// Filters in the order of transformers: repetition penalty, temperature, top-k, top-p, min-p.
struct SamplingOptions {
  double temperature = 0;  ///< 0: greedy
  int top_k = 0;           ///< 0: off
  double top_p = 1;
  double min_p = 0;
  double repetition_penalty = 1;
  uint64_t seed = 0;
};

/// What is wanted of a row of logits [vocab_size]. Which token it is, is defined to the bit, on every device:
/// 1. Repetition penalty, in float: a logit of a token of the history, once, times the penalty if below 0, else
/// divided.
/// 2. Temperature 0: the largest logit, of equal ones the lowest id. Else each token weighs exp((logit − largest) /
///    temperature) as a whole number, the largest's being 2^44 (sampling_weight.h).
/// 3. Top-k: all logits that are at least the k-th largest; with equal ones they may be more than k.
/// 4. Top-p: of these, by logit and then by id, as long as those before weigh less than top_p of all; one at least.
/// 5. Min-p: of these, what weighs at least min_p of the likeliest.
/// 6. By id, the first with which the sum of weights exceeds random_bits(seed, number) / 2^64 of their total.
struct Draw {
  SamplingOptions options;
  std::span<const int> history;  ///< ids within the row; read if the penalty is not 1
  uint64_t number = 0;           ///< the n-th draw of a sequence depends on seed and n only
};

/// The token; −1 if a logit is not a number, or the largest not finite. The penalty changes logits in place.
int draw_from(std::span<float> logits, const Draw& draw);

/// What draw_from() draws from when the temperature is above 0: id and probability of each token that the filters
/// leave, by id; none where it gives −1.
std::vector<std::pair<int, double>> sampling_distribution(std::span<float> logits, const SamplingOptions& options,
                                                          std::span<const int> history);

/// 53 random bits, the upper ones of 64: Philox4x32-10 (Salmon et al. 2011) with the seed as key and the draw as
/// counter; and the same as a number in [0, 1).
uint64_t random_bits(uint64_t seed, uint64_t draw) noexcept;
double uniform_draw(uint64_t seed, uint64_t draw) noexcept;

}  // namespace firstlight

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

/// Throws Error{bad_input} naming an option that is out of range or not finite.
void validate(const SamplingOptions& options);

/// The sampler, by itself, for one row of logits [vocab_size], which the repetition penalty changes in place.
/// `history`: the tokens it is for, prompt included. Equal logits: the lowest id. Deterministic for a seed: the n-th
/// draw of a sequence depends on seed and n only. Throws Error{bug} if the logits are not numbers.
int sample(std::span<float> logits, const SamplingOptions& options, const std::vector<int>& history, uint64_t draw);

/// What sample() draws from when the temperature is above 0: id and probability of each token that the filters leave,
/// by id.
std::vector<std::pair<int, double>> sampling_distribution(std::span<float> logits, const SamplingOptions& options,
                                                          const std::vector<int>& history);

/// Uniform in [0, 1), with 53 bits: Philox4x32-10 (Salmon et al. 2011) with the seed as key and the draw as counter.
double uniform_draw(uint64_t seed, uint64_t draw) noexcept;

}  // namespace firstlight

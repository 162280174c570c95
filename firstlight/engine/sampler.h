// SPDX-License-Identifier: Apache-2.0
// Sampling as requests ask for it: what their options may be, and one row on the CPU. The arithmetic is
// ops/sampling.h's.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "firstlight/ops/sampling.h"

namespace firstlight {

/// Throws Error{bad_input} naming an option that is out of range or not finite.
void validate(const SamplingOptions& options);

/// For logits with a NaN, or without a finite value: Error{bad_input}, because the arithmetic gives them for weights
/// that hold NaN or infinity.
[[noreturn]] void throw_no_numbers();

/// The sampler, by itself, for one row of logits [vocab_size], which the repetition penalty changes in place.
/// `history`: the tokens it is for, prompt included. Equal logits: the lowest id. Deterministic for a seed: the n-th
/// draw of a sequence depends on seed and n only. Throws as throw_no_numbers() if the logits are not numbers.
int sample(std::span<float> logits, const SamplingOptions& options, const std::vector<int>& history, uint64_t draw);

}  // namespace firstlight

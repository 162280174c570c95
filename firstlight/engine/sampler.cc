// SPDX-License-Identifier: Apache-2.0
#include "firstlight/engine/sampler.h"

#include <limits>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"

namespace firstlight {

void validate(const SamplingOptions& options) {
  const auto refuse = [](std::string_view name, double value, std::string_view expected) {
    throw Error(ErrorKind::bad_input, str(name, ": ", value, ", expected ", expected));
  };
  const auto within = [](double value, double low, double high) {
    return value >= low && value <= high;
  };  // false for NaN
  constexpr double kMax = std::numeric_limits<float>::max();
  if (!within(options.temperature, 0, kMax)) refuse("temperature", options.temperature, "0 or more");
  if (options.top_k < 0) refuse("top-k", options.top_k, "0 (off) or more");
  if (!within(options.top_p, 0, 1)) refuse("top-p", options.top_p, "0 to 1");
  if (!within(options.min_p, 0, 1)) refuse("min-p", options.min_p, "0 to 1");
  if (!within(options.repetition_penalty, std::numeric_limits<float>::min(), kMax)) {
    refuse("repetition penalty", options.repetition_penalty, "more than 0");
  }
}

void throw_no_numbers() {
  throw Error(ErrorKind::bad_input,
              "the model gives logits that are not numbers: its weights hold NaN or infinity, or values too large");
}

int sample(std::span<float> logits, const SamplingOptions& options, const std::vector<int>& history, uint64_t draw) {
  const int id = draw_from(logits, {options, history, draw});
  if (id < 0) throw_no_numbers();
  return id;
}

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
#include "firstlight/engine/sampler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"

namespace firstlight {
namespace {

struct Candidate {
  float logit;
  int id;
};

// Likeliest first; equal ones by id, so that every filter cuts a row in one way only.
bool before(const Candidate& a, const Candidate& b) { return a.logit != b.logit ? a.logit > b.logit : a.id < b.id; }

void penalise(std::span<float> logits, double penalty, const std::vector<int>& history) {
  if (penalty == 1) return;
  const float factor = static_cast<float>(penalty);
  std::vector<bool> seen(logits.size());
  for (const int id : history) {
    if (id < 0 || static_cast<size_t>(id) >= logits.size()) {
      throw Error(ErrorKind::bug, str("history: token ", id, ", expected 0 to ", logits.size() - 1));
    }
    if (seen[static_cast<size_t>(id)]) continue;  // once a token, however often it was there
    seen[static_cast<size_t>(id)] = true;
    float& logit = logits[static_cast<size_t>(id)];
    logit = logit < 0 ? logit * factor : logit / factor;
  }
}

int likeliest(std::span<const float> logits) {
  size_t best = 0;
  bool has_nan = false;
  for (size_t i = 0; i < logits.size(); ++i) {
    has_nan = has_nan || std::isnan(logits[i]);
    if (logits[i] > logits[best]) best = i;
  }
  if (logits.empty() || has_nan || !std::isfinite(logits[best])) {
    throw Error(ErrorKind::bug, str("logits: ",
                                    logits.empty() ? "none"
                                    : has_nan      ? "not a number"
                                                   : "no finite value",
                                    " among ", logits.size()));
  }
  return static_cast<int>(best);
}

// A row's share of each token, relative to the likeliest's, which is 1.
class Weights {
 public:
  Weights(float max, double temperature) : max_(max), temperature_(temperature) {}
  double operator()(float logit) const { return std::exp((static_cast<double>(logit) - max_) / temperature_); }

 private:
  double max_, temperature_;
};

// All tokens whose logit is at least the k-th largest, by id: with equal ones it may be more than k. 0: all.
std::vector<Candidate> top_k(std::span<const float> logits, size_t k) {
  float least = -std::numeric_limits<float>::infinity();
  std::vector<Candidate> kept;
  if (k > 0) {
    std::vector<float> sorted(logits.begin(), logits.end());
    const auto kth = sorted.begin() + static_cast<std::ptrdiff_t>(k - 1);
    std::nth_element(sorted.begin(), kth, sorted.end(), std::greater<>());
    least = *kth;
  } else {
    kept.reserve(logits.size());
  }
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] >= least) kept.push_back({logits[i], static_cast<int>(i)});
  }
  return kept;
}

// The fewest likeliest tokens that hold a share of p: a token stays if those before it hold less. Sorts a growing head
// only, since the tokens that matter are few: 256 of 128,000 hold 0.95 of an ordinary row.
void keep_top_p(std::vector<Candidate>& candidates, double p, const Weights& weight) {
  double total = 0;
  for (const Candidate& each : candidates) total += weight(each.logit);
  double share = 0;
  size_t n_kept = 0;
  for (size_t sorted = 0, size = 256; n_kept == sorted && sorted < candidates.size(); size *= 4) {
    const size_t end = std::min(size, candidates.size());
    const auto begin_at = candidates.begin() + static_cast<std::ptrdiff_t>(sorted),
               end_at = candidates.begin() + static_cast<std::ptrdiff_t>(end);
    std::nth_element(begin_at, end_at - 1, candidates.end(), before);
    std::sort(begin_at, end_at, before);
    for (sorted = end; n_kept < sorted && (n_kept == 0 || share < p * total); ++n_kept)
      share += weight(candidates[n_kept].logit);
  }
  candidates.resize(n_kept);
}

}  // namespace

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

double uniform_draw(uint64_t seed, uint64_t draw) noexcept {
  std::array<uint32_t, 4> counter{static_cast<uint32_t>(draw), static_cast<uint32_t>(draw >> 32), 0, 0};
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * counter[0], b = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key0, static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key1, static_cast<uint32_t>(a)};
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  const uint64_t bits = (static_cast<uint64_t>(counter[1]) << 32 | counter[0]) >> 11;
  return static_cast<double>(bits) * 0x1p-53;
}

std::vector<std::pair<int, double>> sampling_distribution(std::span<float> logits, const SamplingOptions& options,
                                                          const std::vector<int>& history) {
  penalise(logits, options.repetition_penalty, history);
  const float max = logits[static_cast<size_t>(likeliest(logits))];
  const Weights weight(max, options.temperature);
  const bool limited = options.top_k > 0 && static_cast<size_t>(options.top_k) < logits.size();
  std::vector<Candidate> kept = top_k(logits, limited ? static_cast<size_t>(options.top_k) : 0);
  if (options.top_p < 1) {
    keep_top_p(kept, options.top_p, weight);
    std::sort(kept.begin(), kept.end(), [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  }
  if (options.min_p > 0) {
    // The likeliest token's weight is 1. It stays even if rounding puts it below the bound.
    std::erase_if(kept, [&](const Candidate& each) { return weight(each.logit) < options.min_p && each.logit != max; });
  }
  double total = 0;
  std::vector<std::pair<int, double>> out;
  out.reserve(kept.size());
  for (const Candidate& each : kept) {
    out.emplace_back(each.id, weight(each.logit));
    total += out.back().second;
  }
  for (auto& [id, probability] : out) probability /= total;
  return out;
}

int sample(std::span<float> logits, const SamplingOptions& options, const std::vector<int>& history, uint64_t draw) {
  if (options.temperature == 0) {
    penalise(logits, options.repetition_penalty, history);
    return likeliest(logits);
  }
  const auto distribution = sampling_distribution(logits, options, history);
  const double target = uniform_draw(options.seed, draw);
  double below = 0;
  int id = -1;
  for (const auto& [candidate, probability] : distribution) {
    if (probability == 0) continue;
    id = candidate;  // rounding may leave the sum just below 1: the last one takes the rest
    below += probability;
    if (target < below) break;
  }
  return id;
}

}  // namespace firstlight

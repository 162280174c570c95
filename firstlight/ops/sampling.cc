// SPDX-License-Identifier: Apache-2.0
#include "firstlight/ops/sampling.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ops/ops.h"
#include "firstlight/ops/sampling_weight.h"

namespace firstlight {
namespace {

struct Candidate {
  uint64_t weight;
  float logit;
  int id;
};

// Likeliest first; equal ones by id, so that every filter cuts a row in one way only.
bool before(const Candidate& a, const Candidate& b) { return a.logit != b.logit ? a.logit > b.logit : a.id < b.id; }

void penalise(std::span<float> logits, double penalty, std::span<const int> history) {
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
    logit = sampling::penalised(logit, factor);
  }
}

const uint64_t* roots() {
  static const auto table = [] {
    std::array<uint64_t, sampling::kRoots> all{};
    for (unsigned i = 0; i < sampling::kRoots; ++i) all[i] = sampling::root(i);
    return all;
  }();
  return table.data();
}

// All tokens whose logit is at least the k-th largest, by id: with equal ones it may be more than k. 0: all.
std::vector<Candidate> top_k(std::span<const float> logits, size_t k, const sampling::Scale& scale) {
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
    if (logits[i] >= least) kept.push_back({scale.weight(logits[i], roots()), logits[i], static_cast<int>(i)});
  }
  return kept;
}

uint64_t total_of(const std::vector<Candidate>& candidates) {
  uint64_t total = 0;
  for (const Candidate& each : candidates) total += each.weight;
  return total;
}

// The fewest likeliest tokens that hold a share of p: a token stays if those before it hold less. Sorts a growing head
// only, since the tokens that matter are few: 256 of 128,000 hold 0.95 of an ordinary row.
void keep_top_p(std::vector<Candidate>& candidates, double p) {
  const uint64_t wanted = sampling::top_p_share(p, total_of(candidates));
  uint64_t share = 0;
  size_t n_kept = 0;
  for (size_t sorted = 0, size = 256; n_kept == sorted && sorted < candidates.size(); size *= 4) {
    const size_t end = std::min(size, candidates.size());
    const auto begin_at = candidates.begin() + static_cast<std::ptrdiff_t>(sorted),
               end_at = candidates.begin() + static_cast<std::ptrdiff_t>(end);
    std::nth_element(begin_at, end_at - 1, candidates.end(), before);
    std::sort(begin_at, end_at, before);
    for (sorted = end; n_kept < sorted && share < wanted; ++n_kept) share += candidates[n_kept].weight;
  }
  candidates.resize(n_kept);
}

// By id; none if the row has no likeliest token.
std::vector<Candidate> filter(std::span<float> logits, const SamplingOptions& options, std::span<const int> history) {
  penalise(logits, options.repetition_penalty, history);
  const Likeliest best = likeliest_of(logits, 0);
  if (best.id < 0) return {};
  const sampling::Scale scale{best.logit, sampling::Scale::powers_of(options.temperature)};
  const bool limited = options.top_k > 0 && static_cast<size_t>(options.top_k) < logits.size();
  std::vector<Candidate> kept = top_k(logits, limited ? static_cast<size_t>(options.top_k) : 0, scale);
  if (options.top_p < 1) {
    keep_top_p(kept, options.top_p);
    std::sort(kept.begin(), kept.end(), [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  }
  const uint64_t least = sampling::least_weight(options.min_p);
  std::erase_if(kept, [&](const Candidate& each) { return each.weight < least; });
  return kept;
}

}  // namespace

uint64_t random_bits(uint64_t seed, uint64_t draw) noexcept {
  std::array<uint32_t, 4> counter{static_cast<uint32_t>(draw), static_cast<uint32_t>(draw >> 32), 0, 0};
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * counter[0], b = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key0, static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key1, static_cast<uint32_t>(a)};
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return (static_cast<uint64_t>(counter[1]) << 32 | counter[0]) >> 11 << 11;
}

double uniform_draw(uint64_t seed, uint64_t draw) noexcept {
  return static_cast<double>(random_bits(seed, draw) >> 11) * 0x1p-53;
}

std::vector<std::pair<int, double>> sampling_distribution(std::span<float> logits, const SamplingOptions& options,
                                                          std::span<const int> history) {
  const std::vector<Candidate> kept = filter(logits, options, history);
  const auto total = static_cast<double>(total_of(kept));
  std::vector<std::pair<int, double>> out;
  for (const Candidate& each : kept) out.emplace_back(each.id, static_cast<double>(each.weight) / total);
  return out;
}

int draw_from(std::span<float> logits, const Draw& draw) {
  if (draw.options.temperature == 0) {
    penalise(logits, draw.options.repetition_penalty, draw.history);
    return likeliest_of(logits, 0).id;
  }
  const std::vector<Candidate> kept = filter(logits, draw.options, draw.history);
  uint64_t left = sampling::drawn_share(random_bits(draw.options.seed, draw.number), total_of(kept));
  for (const Candidate& each : kept) {
    if (left < each.weight) return each.id;
    left -= each.weight;
  }
  return -1;
}

}  // namespace firstlight

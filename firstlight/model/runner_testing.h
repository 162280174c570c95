// SPDX-License-Identifier: Apache-2.0
// For tests: a small model, its ranks and a runner over them.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "firstlight/device/copy.h"
#include "firstlight/device/gpus.h"
#include "firstlight/model/reference_ops.h"
#include "firstlight/model/runner.h"
#include "firstlight/model/whole_model.h"

namespace firstlight {

inline std::unique_ptr<Ops> plain_ops(ThreadPool&) { return std::make_unique<ReferenceOps>(); }

/// Two layers, 12 heads on 4 kv heads, with everything that an architecture may have.
inline ModelConfig small_config() {
  ModelConfig config;
  config.hf_class = "LlamaForCausalLM";
  config.n_layers = 2;
  config.dim = 24;
  config.hidden_dim = 36;
  config.n_heads = 12;
  config.n_kv_heads = 4;
  config.head_dim = 4;
  config.vocab_size = 61;  // prime: every tp > 1 pads
  config.max_context = 512;
  config.qkv_bias = config.o_bias = config.mlp_bias = config.qk_norm = true;
  return config;
}

/// The same with heads of 64, which codes come in.
inline ModelConfig small_code_config() {
  ModelConfig config = small_config();
  config.n_heads = 4;
  config.n_kv_heads = 2;
  config.head_dim = 64;
  config.dim = 64;
  return config;
}

inline std::vector<int> tokens_of(int n, int seed = 0) {
  std::vector<int> ids;
  for (int i = 0; i < n; ++i) ids.push_back((i * 17 + i * i * 5 + seed * 23) % 61);
  return ids;
}

/// A model, its ranks and a runner over them.
struct Fixture {
  explicit Fixture(int tp, const ModelConfig& config = small_config(), uint64_t gap = 0, DType dtype = DType::f32,
                   int64_t n_pages = 24)
      : model(random_model(config)), weights(cut_all(model, tp, dtype, gap)) {
    options.kv = KvKind::f32;
    options.n_pages = n_pages;
    options.n_threads = 1;
    options.make_ops = plain_ops;
    runner = make_runner(model.config, weights, options);
  }
  /// Logits of the last n_logits tokens of a fresh sequence, computed in chunks of `chunk` tokens.
  std::vector<float> logits(const std::vector<int>& ids, int n_logits, int chunk = 512) {
    PageTable pages(runner->pool());
    EXPECT_TRUE(pages.try_reserve(static_cast<int64_t>(ids.size())));
    std::vector<float> all, step;
    const int n = static_cast<int>(ids.size());
    for (int at = 0; at < n; at += chunk) {
      const int size = std::min(chunk, n - at), wanted = std::clamp(at + size - (n - n_logits), 0, size);
      const SequenceChunk piece{std::span(ids).subspan(static_cast<size_t>(at), static_cast<size_t>(size)), at, &pages,
                                wanted};
      runner->forward({&piece, 1}, step);
      all.insert(all.end(), step.begin(), step.end());
    }
    return all;
  }
  WholeModel model;
  std::vector<RankWeights> weights;
  RunnerOptions options;
  std::unique_ptr<Runner> runner;
};

/// Rank r's weights to the r-th GPU, if there are as many.
inline void move_to_gpus(std::vector<RankWeights>& weights) {
  for (RankWeights& rank : weights) {
    const Device device{Device::Kind::cuda, rank.rank % static_cast<int>(gpus().names.size())};
    Buffer arena(device, rank.arena.size());
    copy(arena.data(), device, rank.arena.data(), {}, rank.arena.size());
    for (auto& [name, tensor] : rank.tensors) tensor.data = arena.data() + (tensor.data - rank.arena.data());
    rank.arena = std::move(arena);
  }
}

inline float largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  float largest = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

}  // namespace firstlight

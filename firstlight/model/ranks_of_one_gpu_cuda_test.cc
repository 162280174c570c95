// SPDX-License-Identifier: Apache-2.0
// Ranks that share a GPU run their kernels beside each other, in any order and with any of their blocks resident, and
// blocks of decode attention over long contexts wait for other blocks: it must end, with one rank's results.
#include <gtest/gtest.h>

#include "firstlight/device/gpus.h"
#include "firstlight/model/runner_testing.h"

namespace firstlight {
namespace {

constexpr int64_t kPages = 700;

std::vector<int> any_tokens(int64_t n, int64_t seed) {
  std::vector<int> ids;
  for (int64_t i = 0; i < n; ++i) ids.push_back(static_cast<int>((i * 17 + i * i * 5 + seed * 23) % 61));
  return ids;
}

/// Ranks 0 to tp − 1 of a model whose heads codes come in, all on the first GPU.
struct OnOneGpu : Fixture {
  OnOneGpu(KvKind kind, int tp) : Fixture(tp, small_code_config(), 256, DType::f32, kPages) {
    runner.reset();
    const Device gpu{Device::Kind::cuda, 0};
    for (RankWeights& rank : weights) {
      Buffer arena(gpu, rank.arena.size());
      copy(arena.data(), gpu, rank.arena.data(), {}, rank.arena.size());
      for (auto& [name, tensor] : rank.tensors) tensor.data = arena.data() + (tensor.data - rank.arena.data());
      rank.arena = std::move(arena);
    }
    options.kv = kind;
    if (is_compressed(kind)) options.n_exact_pages = exact_pages_for(3, options.max_batch_tokens, options.n_pages);
    options.make_ops = nullptr;
    runner = make_runner(model.config, weights, options);
  }

  /// Behind prompts of these lengths: logits of 20 passes of a token of each sequence.
  std::vector<float> steps(std::span<const int64_t> lengths) {
    std::vector<std::unique_ptr<PageTable>> pages;
    std::vector<std::vector<int>> ids;
    std::vector<float> all, step;
    for (const int64_t n : lengths) {
      ids.push_back(any_tokens(n + 20, n));
      pages.push_back(std::make_unique<PageTable>(runner->pool(), runner->exact_pool()));
      EXPECT_TRUE(pages.back()->try_reserve(n + 20));
      for (int64_t at = 0; at < n; at += options.max_batch_tokens) {
        const auto size = static_cast<size_t>(std::min<int64_t>(options.max_batch_tokens, n - at));
        const SequenceChunk chunk{std::span(ids.back()).subspan(static_cast<size_t>(at), size), at, pages.back().get(),
                                  0};
        runner->forward({&chunk, 1}, step);
        pages.back()->release_exact(at + static_cast<int64_t>(size));
      }
    }
    for (int64_t i = 0; i < 20; ++i) {
      std::vector<SequenceChunk> batch;
      for (size_t s = 0; s < lengths.size(); ++s) {
        const auto at = static_cast<size_t>(lengths[s] + i);
        batch.push_back({std::span(ids[s]).subspan(at, 1), lengths[s] + i, pages[s].get(), 1});
      }
      runner->forward(batch, step);
      all.insert(all.end(), step.begin(), step.end());
      for (size_t s = 0; s < lengths.size(); ++s) pages[s]->release_exact(lengths[s] + i + 1);
    }
    return all;
  }
};

TEST(RanksOfOneGpuCuda, AttendOverLongContextsAsOneRankDoes) {
  if (gpus().names.empty()) GTEST_SKIP() << "no GPU: " << gpus().why_none;
  for (const KvKind kind : {KvKind::tq4, KvKind::bf16}) {
    for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{32'000}, {32'000, 9'000, 700}}) {
      const std::vector<float> one = OnOneGpu(kind, 1).steps(lengths);
      OnOneGpu two(kind, 2);
      EXPECT_EQ(two.runner->comm_path(), "host memory (ranks 0 and 1 share cuda:0)");
      const std::vector<float> got = two.steps(lengths);
      for (const float x : got) ASSERT_TRUE(std::isfinite(x));
      EXPECT_LT(largest_difference(got, one), 0.1f) << to_string(kind) << ", " << lengths.size() << " sequences";
    }
  }
}

}  // namespace
}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// A prompt's first tokens saved to a file and read into another model's cache: it goes on with the same logits, to the
// bit, as the model that computed them.
#include "firstlight/device/gpus.h"
#include "firstlight/kv/prefix_testing.h"
#include "firstlight/model/runner_testing.h"

namespace firstlight {
namespace {

constexpr int64_t kPrefixTokens = 6 * kPageTokens;

/// A model whose heads codes come in: on the CPU, or rank r on the r-th GPU, if there are as many.
struct Model : Fixture {
  Model(KvKind kind, int tp, Device::Kind where) : Fixture(tp, small_code_config(), 256) {
    runner.reset();
    if (where == Device::Kind::cuda) move_to_gpus(weights);
    options.kv = kind;
    if (is_compressed(kind)) options.n_exact_pages = exact_pages_for(1, options.max_batch_tokens, options.n_pages);
    options.make_ops = nullptr;
    runner = make_runner(model.config, weights, options);
    pages = std::make_unique<PageTable>(runner->pool(), runner->exact_pool());
    EXPECT_TRUE(pages->try_reserve(kPrefixTokens + 4 * kPageTokens));
  }
  /// Logits of the last tokens of a chunk.
  std::vector<float> forward(std::span<const int> ids, int64_t begin, int64_t n, int n_logits) {
    std::vector<float> logits;
    const SequenceChunk chunk{ids.subspan(static_cast<size_t>(begin), static_cast<size_t>(n)), begin, pages.get(),
                              n_logits};
    runner->forward({&chunk, 1}, logits);
    pages->release_exact(begin + n - kPageTokens);  // a file has those of the last page, too
    return logits;
  }
  /// Behind the prefix: the rest of a prompt, then single tokens.
  std::vector<float> go_on(std::span<const int> ids) {
    std::vector<float> all = forward(ids, kPrefixTokens, 100, 100);
    for (int64_t at = kPrefixTokens + 100; at < std::ssize(ids); ++at) {
      const std::vector<float> step = forward(ids, at, 1, 1);
      all.insert(all.end(), step.begin(), step.end());
    }
    return all;
  }
  PrefixInfo info(std::span<const int> ids) const {
    PrefixInfo info = prefix_info(options.kv, 1, static_cast<int>(weights.size()));
    info.n_layers = model.config.n_layers;
    info.n_kv_heads = model.config.n_kv_heads;
    info.head_dim = model.config.head_dim;
    info.tokens.assign(ids.begin(), ids.begin() + kPrefixTokens);
    return info;
  }
  std::unique_ptr<PageTable> pages;
};

void saves_and_goes_on(KvKind kind, int tp, Device::Kind where) {
  const Folder folder;
  const std::vector<int> ids = tokens_of(kPrefixTokens + 100 + 70);
  Model computed(kind, tp, where);
  computed.forward(ids, 0, 200, 0);
  computed.forward(ids, 200, kPrefixTokens - 200, 0);
  write_prefix(folder / "p", computed.info(ids), computed.runner->rank_pages(), *computed.pages);
  const std::vector<float> expected = computed.go_on(ids);

  Model restored(kind, tp, where);
  restored.pages->hold_exact_before(kPrefixTokens);
  const std::vector<RankPages> ranks = restored.runner->rank_pages();
  std::vector<ReadLane> lanes;
  std::vector<ReadLane*> of_ranks;
  for (const RankPages& rank : ranks) lanes.push_back(lane_into(rank.device));
  for (ReadLane& lane : lanes) of_ranks.push_back(&lane);
  const PrefixFile file(folder / "p");
  PrefixRead(file, of_ranks, ranks, *restored.pages).wait({});
  const std::vector<float> found = restored.go_on(ids);
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    ASSERT_TRUE(std::isfinite(found[i]));
    ASSERT_EQ(found[i], expected[i]) << to_string(kind) << ", tp " << tp << ", logit " << i;
  }
}

TEST(RestoredPrefix, GoesOnWithTheSameLogitsToTheBit) {
  for (const KvKind kind : {KvKind::bf16, KvKind::tq4, KvKind::k8v4}) saves_and_goes_on(kind, 2, Device::Kind::cpu);
}

TEST(RestoredPrefixCuda, GoesOnWithTheSameLogitsToTheBit) {
  if (gpus().names.empty()) GTEST_SKIP() << "no GPU: " << gpus().why_none;
  for (const KvKind kind : {KvKind::bf16, KvKind::tq8, KvKind::tq4, KvKind::k3v2}) {
    for (const int tp : {1, 2}) saves_and_goes_on(kind, tp, Device::Kind::cuda);
  }
}

}  // namespace
}  // namespace firstlight

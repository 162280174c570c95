// SPDX-License-Identifier: Apache-2.0
// A prompt that goes on from a restored prefix gives the logits of one that was computed from its beginning, to the
// bit, by the CPU's own arithmetic.
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "firstlight/engine/engine.h"
#include "firstlight/io/pread_reader.h"
#include "firstlight/kv/prefix_testing.h"
#include "firstlight/model/runner_testing.h"
#include "firstlight/quant/turboquant.h"

namespace firstlight {
namespace {

/// Keeps the logits of every pass.
class Recorder final : public Runner {
 public:
  explicit Recorder(Runner& inner) : inner_(inner) {}
  void forward(std::span<const SequenceChunk> batch, std::vector<float>& logits) override {
    for (const SequenceChunk& chunk : batch) n_computed += chunk.tokens.size();
    inner_.forward(batch, logits);
    all.insert(all.end(), logits.begin(), logits.end());
  }
  const ModelConfig& config() const override { return inner_.config(); }
  PagePool& pool() override { return inner_.pool(); }
  PagePool* exact_pool() override { return inner_.exact_pool(); }
  std::string_view ops_name() const override { return inner_.ops_name(); }
  std::vector<float> all;
  size_t n_computed = 0;

 private:
  Runner& inner_;
};

struct PrefixFixture : Fixture {
  static ModelConfig config() {
    ModelConfig config = small_config();
    config.n_heads = 4;
    config.n_kv_heads = 2;
    config.head_dim = 64;
    config.dim = 64;
    config.max_context = 2048;
    return config;
  }
  explicit PrefixFixture(KvKind kind, int tp) : Fixture(tp, config(), 0, DType::bf16, 40) {
    options.kv = kind;
    options.n_exact_pages = is_compressed(kind) ? exact_pages_for(1, options.max_batch_tokens, options.n_pages) : 0;
    options.make_ops = nullptr;
    runner = make_runner(model.config, weights, options);
    info.model = "xxh3:0";
    info.computed_by = "test";
    info.kind = kind;
    info.seed = is_compressed(kind) ? turboquant::kSeed : 0;
    info.tp = tp;
    info.n_layers = model.config.n_layers;
    info.n_kv_heads = model.config.n_kv_heads;
    info.head_dim = model.config.head_dim;
  }
  /// Logits of a prompt's last token and of those generated after it.
  std::vector<float> answer(const std::vector<int>& prompt, Prefix prefix = {}, size_t expected_rows = 0) {
    Recorder recorder(*runner);
    Engine engine(recorder, nullptr, {});
    Request request;
    request.prompt = prompt;
    request.max_new_tokens = 12;
    engine.submit(request, {}, std::move(prefix));
    while (engine.step()) {
    }
    if (expected_rows != 0) {
      EXPECT_EQ(recorder.n_computed, expected_rows + 11);
    }
    return std::move(recorder.all);
  }
  Prefix no_prefix() { return {std::make_unique<PageTable>(runner->pool(), runner->exact_pool()), 0}; }
  void save(const fs::path& path, const std::vector<int>& prompt) {
    Prefix prefix = no_prefix();
    extend_prefix(*runner, prefix, prompt, static_cast<int64_t>(prompt.size()) / kPageTokens * kPageTokens);
    info.tokens.assign(prompt.begin(), prompt.begin() + prefix.n_tokens);
    write_prefix(path, info, runner->rank_pages(), *prefix.pages);
  }
  Prefix restore(const fs::path& path) {
    const PrefixFile file(path);
    Prefix prefix = no_prefix();
    prefix.n_tokens = static_cast<int64_t>(file.info().tokens.size());
    EXPECT_TRUE(prefix.pages->try_reserve(prefix.n_tokens));
    prefix.pages->hold_exact_before(prefix.n_tokens);
    PreadReader reader(2);
    file.read(reader, runner->rank_pages(), *prefix.pages);
    return prefix;
  }
  PrefixInfo info;
};

class RestoredPrefix : public testing::TestWithParam<std::tuple<KvKind, int>> {};

TEST_P(RestoredPrefix, GivesTheLogitsOfTheWholePromptToTheBit) {
  const auto [kind, tp] = GetParam();
  const Folder folder;
  PrefixFixture writer(kind, tp), reader(kind, tp);
  for (const int n_saved : {64, 199, 576, 1027}) {
    writer.save(folder / "p", tokens_of(n_saved));
    const int n_pages = n_saved / 64;
    for (const int n_prompt : {n_pages * 64, n_pages * 64 + 3, n_saved, n_pages * 64 + 8, n_saved + 70, 1029, 1700}) {
      if (n_prompt < n_pages * 64) continue;
      const std::vector<int> prompt = tokens_of(n_prompt);
      const int taken = n_prompt - n_pages * 64 < 8 ? (n_pages - 1) * 64 : n_pages * 64;
      const std::vector<float> whole = reader.answer(prompt, {}, prompt.size());
      const std::vector<float> restored =
          reader.answer(prompt, reader.restore(folder / "p"), static_cast<size_t>(n_prompt - taken));
      ASSERT_EQ(restored.size(), 12u * 61);
      EXPECT_TRUE(restored == whole) << n_saved << " of " << n_prompt << " tokens";
      EXPECT_EQ(reader.runner->pool().n_free(), 40);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, RestoredPrefix,
                         testing::Combine(testing::Values(KvKind::f32, KvKind::bf16, KvKind::tq4, KvKind::k3v2),
                                          testing::Values(1, 2)));

/// Otherwise the test above would compare nothing.
TEST(RestoredPrefix, AnotherPrefixGivesOtherLogits) {
  const Folder folder;
  PrefixFixture fixture(KvKind::tq4, 1);
  fixture.save(folder / "p", tokens_of(256, 1));
  const std::vector<int> prompt = tokens_of(300);
  EXPECT_FALSE(fixture.answer(prompt, fixture.restore(folder / "p")) == fixture.answer(prompt));
}

TEST(RestoredPrefix, IsSavedAgainLongerAsTheWholeIs) {
  const Folder folder;
  PrefixFixture fixture(KvKind::tq4, 2);
  const std::vector<int> prompt = tokens_of(1300);
  fixture.save(folder / "whole", prompt);
  fixture.save(folder / "part", tokens_of(700));
  Prefix prefix = fixture.restore(folder / "part");
  extend_prefix(*fixture.runner, prefix, prompt, 1280);
  fixture.info.tokens.assign(prompt.begin(), prompt.begin() + 1280);
  write_prefix(folder / "longer", fixture.info, fixture.runner->rank_pages(), *prefix.pages);
  EXPECT_TRUE(bytes_of(folder / "longer") == bytes_of(folder / "whole"));
}

TEST(ReusableTokens, AreWholePagesThatLeaveEightTokens) {
  EXPECT_EQ(reusable_tokens(64, 64), 0);
  EXPECT_EQ(reusable_tokens(71, 64), 0);
  EXPECT_EQ(reusable_tokens(72, 64), 64);
  EXPECT_EQ(reusable_tokens(1000, 64), 64);
  EXPECT_EQ(reusable_tokens(135, 128), 64);
  EXPECT_EQ(reusable_tokens(1000, 200), 192);
  EXPECT_EQ(reusable_tokens(3, 64), 0);
  EXPECT_EQ(reusable_tokens(1000, 0), 0);
}

}  // namespace
}  // namespace firstlight

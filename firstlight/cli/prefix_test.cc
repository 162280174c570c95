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
    ModelConfig config = small_code_config();
    config.max_context = 2048;
    return config;
  }
  PrefixFixture(KvKind kind, int tp, decltype(RunnerOptions::make_ops) ops = nullptr)
      : Fixture(tp, config(), 0, DType::bf16, 40) {
    options.kv = kind;
    options.n_exact_pages = is_compressed(kind) ? exact_pages_for(1, options.max_batch_tokens, options.n_pages) : 0;
    options.make_ops = std::move(ops);
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
  /// As `run --save-prefix`: behind the first token, while others follow (twelve are enough for another page).
  void save(const fs::path& path, const std::vector<int>& prompt, Prefix prefix = {}, int n_tokens = 12) {
    Engine engine(*runner, nullptr, {});
    Request request;
    request.prompt = prompt;
    request.max_new_tokens = n_tokens;
    Prefix whole;
    int n_given = 0;
    request.on_prompt = [&](Prefix given) {
      whole = std::move(given);
      ++n_given;
    };
    engine.submit(request, {}, std::move(prefix));
    while (engine.step()) {
    }
    EXPECT_EQ(n_given, 1);
    info.tokens.assign(prompt.begin(), prompt.begin() + whole.n_tokens);
    write_prefix(path, info, runner->rank_pages(), *whole.pages);
  }
  /// The plain way: whole pages alone are computed, and nothing after them.
  void save_plainly(const fs::path& path, const std::vector<int>& prompt) {
    const int64_t n = static_cast<int64_t>(prompt.size()) / kPageTokens * kPageTokens;
    Prefix whole = no_prefix();
    EXPECT_TRUE(whole.pages->try_reserve(n));
    std::vector<float> no_logits;
    for (int64_t begin = 0; begin < n; begin += 256) {
      const int64_t end = std::min<int64_t>(n, begin + 256);
      whole.pages->release_exact(std::max<int64_t>(0, begin - kPageTokens));
      const SequenceChunk chunk{std::span(prompt).subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)),
                                begin, whole.pages.get(), 0};
      runner->forward({&chunk, 1}, no_logits);
    }
    info.tokens.assign(prompt.begin(), prompt.begin() + n);
    write_prefix(path, info, runner->rank_pages(), *whole.pages);
  }
  Prefix restore(const fs::path& path) {
    const PrefixFile file(path);
    Prefix prefix = no_prefix();
    prefix.n_tokens = static_cast<int64_t>(file.info().tokens.size());
    EXPECT_TRUE(prefix.pages->try_reserve(prefix.n_tokens));
    prefix.pages->hold_exact_before(prefix.n_tokens);
    ReadLane lane = lane_of(std::make_unique<PreadReader>(2));
    read_prefix(file, lane, runner->rank_pages(), *prefix.pages);
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

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)  // half a minute each
INSTANTIATE_TEST_SUITE_P(Kinds, RestoredPrefix,
                         testing::Combine(testing::Values(KvKind::bf16, KvKind::tq4), testing::Values(2)));
#else
INSTANTIATE_TEST_SUITE_P(Kinds, RestoredPrefix,
                         testing::Combine(testing::Values(KvKind::f32, KvKind::bf16, KvKind::tq4, KvKind::k3v2),
                                          testing::Values(1, 2)));
#endif

/// A prompt after another, with sharing and without: the CPU's arithmetic, so every bit counts.
TEST_P(RestoredPrefix, AndSoDoOnesThatAnEngineShares) {
  const auto [kind, tp] = GetParam();
  PrefixFixture fixture(kind, tp);
  Recorder recorder(*fixture.runner);
  EngineOptions options;
  options.share_prefixes = true;
  Engine engine(recorder, nullptr, options);
  int64_t n_shared = 0;
  for (const int n : {700, 330, 700, 1030, 135, 72, 1029, 1700, 1200}) {
    Request request;
    request.prompt = tokens_of(n);
    request.max_new_tokens = 12;
    recorder.all.clear();
    engine.submit(request, [&](const TokenEvent& event) { n_shared += event.n_shared; });
    while (engine.step()) {
    }
    EXPECT_TRUE(recorder.all == PrefixFixture(kind, tp).answer(request.prompt)) << n << " tokens";
  }
  EXPECT_GT(n_shared, 12 * 1000);
  EXPECT_EQ(fixture.runner->pool().n_free(), 40);
}

TEST_P(RestoredPrefix, AndWhatFollowsARollBackIsWhatFollowsWithoutIt) {
  const auto [kind, tp] = GetParam();
  PrefixFixture fixture(kind, tp), plain(kind, tp);
  const auto compute = [](Runner& runner, PageTable& pages, const std::vector<int>& ids, int64_t begin) {
    std::vector<float> logits;
    const SequenceChunk chunk{std::span(ids).subspan(static_cast<size_t>(begin)), begin, &pages, 8};
    EXPECT_TRUE(pages.try_reserve(static_cast<int64_t>(ids.size())));
    runner.forward({&chunk, 1}, logits);
    return logits;
  };
  for (const auto& [n, kept] : {std::pair{300, 290}, {300, 260}, {320, 310}, {400, 390}}) {
    Prefix first = fixture.no_prefix(), whole = plain.no_prefix();
    std::vector<int> ids = tokens_of(n);
    compute(*fixture.runner, *first.pages, ids, 0);
    first.pages->release_exact(n);
    // A page back the bf16 copies beside codes are gone that its queries read.
    const bool can = !is_compressed(kind) || n / kPageTokens == kept / kPageTokens;
    ASSERT_EQ(first.pages->try_truncate(kept), can) << n << " back to " << kept;
    if (!can) continue;
    ids = tokens_of(kept);
    for (int i = 0; i < 90; ++i) ids.push_back(i % 61);
    const auto after = compute(*fixture.runner, *first.pages, ids, kept);
    EXPECT_TRUE(after == compute(*plain.runner, *whole.pages, ids, 0)) << n << " back to " << kept;
  }
}

/// By plain arithmetic: a pass of prompts and single rows rounds the CPU's products in another way than single rows do.
TEST(Samples, GetTheTokensOfRequestsOfTheirOwn) {
  for (const auto& [kind, tp] : {std::pair{KvKind::f32, 1}, {KvKind::bf16, 2}}) {
    PrefixFixture fixture(kind, tp, plain_ops), alone(kind, tp, plain_ops);
    for (const int n : {20, 200, 263}) {
      Request request;
      request.prompt = tokens_of(n, 2);
      request.max_new_tokens = 20;
      request.sampling.temperature = 1;
      request.sampling.seed = 5;
      request.n_samples = 3;
      std::vector<std::vector<int>> samples(3), expected(3);
      Engine engine(*fixture.runner, nullptr, {});
      engine.submit(request,
                    [&](const TokenEvent& event) { samples[event.request - 1].push_back(event.id.value_or(-1)); });
      while (engine.step()) {
      }
      request.n_samples = 1;
      for (std::vector<int>& ids : expected) {
        Engine other(*alone.runner, nullptr, {});
        other.submit(request, [&](const TokenEvent& event) { ids.push_back(event.id.value_or(-1)); });
        while (other.step()) {
        }
        ++request.sampling.seed;
      }
      EXPECT_EQ(samples, expected) << n << " tokens";
    }
  }
}

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
  fixture.save(folder / "longer", prompt, fixture.restore(folder / "part"));
  EXPECT_TRUE(bytes_of(folder / "longer") == bytes_of(folder / "whole"));
}

/// Whatever follows the prompt, however much, and wherever its last page ends.
TEST(RestoredPrefix, IsTheFileOfAPromptThatNothingFollows) {
  for (const KvKind kind : {KvKind::bf16, KvKind::tq4}) {
    const Folder folder;
    PrefixFixture fixture(kind, 1), plain(kind, 1);
    for (const int n : {64, 65, 130, 576, 583, 1300}) {
      plain.save_plainly(folder / "plain", tokens_of(n));
      fixture.save(folder / "p", tokens_of(n), {}, n % 2 == 0 ? 1 : 300);
      EXPECT_TRUE(bytes_of(folder / "p") == bytes_of(folder / "plain")) << to_string(kind) << ", " << n << " tokens";
      EXPECT_EQ(fixture.runner->pool().n_free(), 40);
    }
  }
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

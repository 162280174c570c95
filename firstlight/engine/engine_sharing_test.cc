// SPDX-License-Identifier: Apache-2.0
// Shared beginnings and several samples of one prompt: each request's tokens are those it gets alone, whoever comes,
// leaves, is put back or evicted; and less is computed.
#include <gtest/gtest.h>

#include <random>

#include "firstlight/base/error.h"
#include "firstlight/engine/engine_testing.h"
#include "firstlight/engine/exact_runner_testing.h"

namespace firstlight {
namespace {

/// One of few beginnings, cut or gone on with.
std::vector<int> related_prompt(std::mt19937& random) {
  std::vector<int> prompt = prompt_of(400, static_cast<int>(random() % 3));
  prompt.resize(1 + random() % 400);
  for (size_t own = random() % 60; own > 0; --own) prompt.push_back(static_cast<int>(random() % 90));
  return prompt;
}

size_t n_computed(const FakeRunner& runner) {
  size_t n = 0;
  for (const auto& batch : runner.batches) {
    for (const auto& chunk : batch) n += chunk.n_tokens;
  }
  return n;
}

struct Case {
  int64_t n_pages, n_exact;
  int budget;
};

class SharedPrefixes : public testing::TestWithParam<Case> {};

TEST_P(SharedPrefixes, GiveEachRequestTheTokensItGetsAlone) {
  const Case param = GetParam();
  size_t computed[2] = {};
  for (const bool share : {false, true}) {
    ExactRunner runner(param.n_pages, param.n_exact, param.budget);
    EngineOptions options = engine_options(param.budget, 6);
    options.share_prefixes = share;
    Harness harness(runner, options);
    std::mt19937 random(11);
    std::vector<std::pair<uint64_t, Request>> requests;
    std::vector<uint64_t> cancelled;
    for (int i = 0; i < 60; ++i) {
      Request request = request_of(related_prompt(random), 1 + static_cast<int>(random() % 40));
      request.n_samples = random() % 4 == 0 ? 1 + static_cast<int>(random() % 4) : 1;
      if (random() % 2 == 0) {
        request.sampling.temperature = 0.9;
        request.sampling.seed = static_cast<uint64_t>(i) * 100;
      }
      const uint64_t id = harness.submit(request);
      for (int s = 0; s < request.n_samples; ++s, ++request.sampling.seed)
        requests.emplace_back(id + static_cast<uint64_t>(s), request);
      if (random() % 7 == 0) {
        harness.engine.cancel(requests[random() % requests.size()].first);
      }
      for (size_t steps = random() % 12; steps > 0; --steps) harness.engine.step();
    }
    harness.run();
    for (const auto& [id, request] : requests) {
      const Outcome& outcome = harness.outcomes[id];
      EXPECT_EQ(outcome.n_ends, 1) << id;
      std::vector<int> expected = reference(request);
      if (outcome.finish == FinishReason::cancelled) expected.resize(outcome.ids.size());
      EXPECT_EQ(outcome.ids, expected) << id;
    }
    EXPECT_EQ(runner.pool().n_free(), param.n_pages);
    if (runner.exact_pool() != nullptr) {
      EXPECT_EQ(runner.exact_pool()->n_free(), param.n_exact);
    }
    EXPECT_GT(runner.n_copied, 0) << "no sample wrote to a page of its own";
    computed[share ? 1 : 0] = n_computed(runner);
  }
  if (param.n_pages > 100) {
    EXPECT_LT(computed[1], computed[0] * 2 / 3);
  }
}

INSTANTIATE_TEST_SUITE_P(Caches, SharedPrefixes,
                         testing::Values(Case{200, 0, 512}, Case{24, 0, 64}, Case{9, 0, 200}, Case{200, 200, 512},
                                         Case{200, 40, 100}, Case{30, 34, 64}));

TEST(SharedPrefixes, ASecondRequestComputesWhatIsNew) {
  FakeRunner runner(40, kVocab, 4096, 512);
  EngineOptions options = engine_options();
  options.share_prefixes = true;
  Harness harness(runner, options);
  std::vector<int64_t> shared;
  const auto note = [&](const TokenEvent& event) { shared.push_back(event.n_shared); };
  for (const int n : {300, 300, 327, 328, 250, 20}) {
    const Request request = request_of(prompt_of(n, 1), 1);
    const uint64_t id = harness.submit(request, note);
    harness.run();
    EXPECT_EQ(harness.outcomes[id].ids, reference(request));
  }
  // Whole pages, which leave 8 tokens; the fifth is what 327 left.
  EXPECT_EQ(shared, (std::vector<int64_t>{0, 256, 256, 320, 192, 0}));
}

TEST(SharedPrefixes, SamplesShareThePromptsPages) {
  FakeRunner runner(40, kVocab, 4096, 512);
  Harness harness(runner, engine_options());
  Request request = request_of(prompt_of(500, 3), 3);
  request.n_samples = 5;
  const uint64_t id = harness.submit(request);
  int64_t fewest = 40;
  while (harness.engine.step()) fewest = std::min(fewest, runner.pool().n_free());
  for (uint64_t i = 0; i < 5; ++i) EXPECT_EQ(harness.outcomes[id + i].ids, reference(request)) << "sample " << i;
  EXPECT_EQ(runner.n_copied, 4) << "the open page, by all but one";
  EXPECT_EQ(fewest, 40 - 8 - 4);
  EXPECT_EQ(n_computed(runner), 500u + 4 * 8 + 5 * 2);
}

TEST(SharedPrefixes, SamplesDrawWithSeedsOfTheirOwn) {
  FakeRunner runner(40, kVocab, 4096, 512);
  Harness harness(runner, engine_options());
  Request request = request_of(prompt_of(30, 3), 20);
  request.sampling.temperature = 1;
  request.sampling.seed = 7;
  request.n_samples = 3;
  const uint64_t id = harness.submit(request);
  harness.run();
  EXPECT_NE(harness.outcomes[id].ids, harness.outcomes[id + 1].ids);
  for (uint64_t i = 0; i < 3; ++i, ++request.sampling.seed) EXPECT_EQ(harness.outcomes[id + i].ids, reference(request));
  request.n_samples = 0;
  EXPECT_THROW(harness.submit(request), Error);
}

/// Generated tokens are computed row by row: their pages are not for prompts.
TEST(SharedPrefixes, PagesOfAnswersAreNotTaken) {
  FakeRunner runner(40, kVocab, 4096, 512);
  EngineOptions options = engine_options();
  options.share_prefixes = true;
  Harness harness(runner, options);
  Request request = request_of(prompt_of(70, 1), 200);
  const uint64_t id = harness.submit(request);
  harness.run();
  request.prompt.insert(request.prompt.end(), harness.outcomes[id].ids.begin(), harness.outcomes[id].ids.end());
  int64_t shared = -1;
  const uint64_t next = harness.submit(request, [&](const TokenEvent& event) { shared = event.n_shared; });
  harness.run();
  EXPECT_EQ(shared, 64);
  EXPECT_EQ(harness.outcomes[next].ids, reference(request));
}

}  // namespace
}  // namespace firstlight

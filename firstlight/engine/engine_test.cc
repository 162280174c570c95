// SPDX-License-Identifier: Apache-2.0
// The engine over a fake model: whatever else runs, waits, fails or is cancelled, a request's tokens are those it gets
// alone.
#include "firstlight/engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/engine/engine_testing.h"

namespace firstlight {
namespace {

TEST(Engine, AloneARequestGetsTheModelsTokens) {
  FakeRunner runner(4, kVocab, 512, 512);
  Harness harness(runner, engine_options());
  const Request request = request_of({1, 2, 3});
  const uint64_t id = harness.submit(request);
  harness.run();
  EXPECT_EQ(harness.outcomes[id].ids, reference(request));
  EXPECT_EQ(harness.outcomes[id].finish, FinishReason::length);
  EXPECT_EQ(runner.pool().n_free(), 4);
  EXPECT_FALSE(harness.engine.step());
}

// Many requests of all shapes over few pages and small budgets, arriving while others run.
class EngineMix : public testing::TestWithParam<std::tuple<int, int, int>> {};

TEST_P(EngineMix, TokensDoNotDependOnBatchesChunksOrPreemption) {
  const auto [n_pages, prefill_chunk, max_batch] = GetParam();
  std::mt19937 random(static_cast<unsigned>(n_pages * 1000 + prefill_chunk * 10 + max_batch));
  FakeRunner runner(n_pages, kVocab, 4096, prefill_chunk);
  Harness harness(runner, engine_options(prefill_chunk, max_batch));
  std::vector<std::pair<uint64_t, Request>> requests;
  for (int i = 0; i < 40; ++i) {
    const int n_prompt = 1 + static_cast<int>(random() % (i % 7 == 0 ? 300 : 40));
    Request request = request_of(prompt_of(n_prompt, i), 1 + static_cast<int>(random() % 90));
    if (i % 2 == 0) {
      request.sampling.temperature = 0.8;
      request.sampling.top_p = 0.9;
      request.sampling.repetition_penalty = 1.2;
      request.sampling.seed = static_cast<uint64_t>(i);
    }
    requests.emplace_back(harness.submit(request), request);
    for (size_t steps = random() % 4; steps > 0; --steps) harness.engine.step();
  }
  harness.run();
  for (const auto& [id, request] : requests) {
    EXPECT_EQ(harness.outcomes[id].ids, reference(request)) << id;
    EXPECT_EQ(harness.outcomes[id].n_ends, 1);
  }
  EXPECT_EQ(runner.pool().n_free(), n_pages);
}

INSTANTIATE_TEST_SUITE_P(Shapes, EngineMix,
                         testing::Combine(testing::Values(7, 9, 24, 400), testing::Values(1, 5, 64, 512),
                                          testing::Values(1, 3, 256)));

TEST(Engine, PagesThatRunOutPutTheYoungestBackAndItGoesOnLaterWithoutATrace) {
  FakeRunner runner(4, kVocab, 4096, 512);
  Harness harness(runner, engine_options());
  // Both fit at first (1 + 1 of 4 pages, one to spare each); they need 3 + 3 in the end.
  const Request first = request_of(prompt_of(50, 1), 110), second = request_of(prompt_of(50, 2), 110);
  const uint64_t a = harness.submit(first), b = harness.submit(second);
  int n_preempted = 0, before = 2;
  while (harness.engine.step()) {
    const int waiting = harness.engine.n_waiting();
    if (waiting > before) {
      ++n_preempted;
      EXPECT_GT(harness.outcomes[a].ids.size(), harness.outcomes[b].ids.size()) << "the older one goes on";
    }
    before = waiting;
  }
  EXPECT_GE(n_preempted, 1);
  EXPECT_EQ(harness.outcomes[a].ids, reference(first));
  EXPECT_EQ(harness.outcomes[b].ids, reference(second));
}

TEST(Engine, PrefillsFastOnRequestWhereNoPrefixIsThere) {
  FakeRunner runner(40, kVocab, 4096, 100);
  EngineOptions options = engine_options(100);
  options.share_prefixes = true;
  Harness harness(runner, options);
  Request request = request_of(prompt_of(150, 1), 1);
  for (const bool fast : {false, true}) {
    for (const int seed : {fast ? 3 : 2, 2}) {  // the second time a prefix is there
      request.prompt = prompt_of(150, seed);
      request.fast_prefill = fast;
      runner.batches.clear();
      harness.submit(request);
      harness.run();
      ASSERT_FALSE(runner.batches.empty());
      const bool expected = fast && seed == 3;
      for (const auto& batch : runner.batches) {
        for (const FakeRunner::Chunk& chunk : batch) EXPECT_EQ(chunk.fresh_exactly, expected) << chunk.position;
      }
    }
  }
}

TEST(Engine, DecodesFirstThenPromptsUpToTheBudget) {
  FakeRunner runner(40, kVocab, 4096, 16);
  Harness harness(runner, engine_options(16));
  harness.submit(request_of(prompt_of(4, 1), 5));
  harness.submit(request_of(prompt_of(30, 2), 2));
  harness.run();
  const auto& batches = runner.batches;
  ASSERT_GE(batches.size(), 4u);
  const auto expect = [](const FakeRunner::Chunk& chunk, size_t n_tokens, int64_t position, int n_logits) {
    EXPECT_EQ(chunk.n_tokens, n_tokens);
    EXPECT_EQ(chunk.position, position);
    EXPECT_EQ(chunk.n_logits, n_logits);
  };
  ASSERT_EQ(batches[0].size(), 2u);
  expect(batches[0][0], 4, 0, 1);
  expect(batches[0][1], 12, 0, 0);
  ASSERT_EQ(batches[1].size(), 2u);
  expect(batches[1][0], 1, 4, 1);
  expect(batches[1][1], 10, 12, 0);  // 15 would leave 3, which are another class of products
  ASSERT_EQ(batches[2].size(), 2u);
  expect(batches[2][0], 1, 5, 1);
  expect(batches[2][1], 8, 22, 1);
  ASSERT_EQ(batches[3].size(), 2u);
  expect(batches[3][1], 1, 30, 1);
}

TEST(Engine, APromptAloneTakesMoreTokensAStepThanOneBesideADecodingSequence) {
  FakeRunner runner(40, kVocab, 4096, 64);
  EngineOptions options = engine_options(16);
  options.prefill_alone = 64;
  Harness harness(runner, options);
  harness.submit(request_of(prompt_of(100, 1), 8));
  harness.engine.step();
  harness.engine.step();  // the first prompt ends, so from here on one decodes
  harness.submit(request_of(prompt_of(100, 2), 2));
  harness.run();
  const auto& batches = runner.batches;
  ASSERT_GE(batches.size(), 3u);
  ASSERT_EQ(batches[0].size(), 1u);
  EXPECT_EQ(batches[0][0].n_tokens, 64u);
  EXPECT_EQ(batches[1][0].n_tokens, 36u);
  ASSERT_EQ(batches[2].size(), 2u);
  EXPECT_EQ(batches[2][0].n_tokens + batches[2][1].n_tokens, 16u);
  const auto& last = batches.back();
  EXPECT_EQ(last.size(), 1u) << "the second ends alone";
  options.prefill_alone = 8;
  EXPECT_THROW(Engine(runner, nullptr, options), Error) << "fewer than beside others";
}

TEST(Engine, AStopTokenEndsTheTextAndIsReported) {
  FakeRunner runner(8, kVocab, 512, 512);
  const Request request = request_of({5}, 50);
  const std::vector<int> expected = reference(request);
  EngineOptions options = engine_options();
  options.stop_ids = {expected[3]};
  const size_t first = static_cast<size_t>(std::find(expected.begin(), expected.end(), expected[3]) - expected.begin());
  Harness harness(runner, options);
  Request stopping = request, ignoring = request, own = request;
  stopping.ignore_eos = false;
  own.stop_ids = {expected[3]};
  const uint64_t a = harness.submit(stopping), b = harness.submit(ignoring), c = harness.submit(own);
  harness.run();
  EXPECT_EQ(harness.outcomes[a].ids,
            std::vector<int>(expected.begin(), expected.begin() + static_cast<std::ptrdiff_t>(first) + 1));
  EXPECT_EQ(harness.outcomes[a].finish, FinishReason::stop_token);
  EXPECT_EQ(harness.outcomes[b].ids, expected);
  EXPECT_EQ(harness.outcomes[b].finish, FinishReason::length);
  EXPECT_EQ(harness.outcomes[c].finish, FinishReason::stop_token)
      << "a request's own stop ids count also with ignore_eos";
}

TEST(Engine, AFullContextEndsTheRequest) {
  FakeRunner runner(8, kVocab, 20, 512);
  Harness harness(runner, engine_options());
  const uint64_t id = harness.submit(request_of(prompt_of(15, 1), 100));
  harness.run();
  EXPECT_EQ(harness.outcomes[id].ids.size(), 5u);
  EXPECT_EQ(harness.outcomes[id].finish, FinishReason::context_full);
}

TEST(Engine, AFullPoolEndsARequestThatRunsAlone) {
  FakeRunner runner(2, kVocab, 4096, 512);
  Harness harness(runner, engine_options());
  const uint64_t id = harness.submit(request_of(prompt_of(100, 1), 1000));
  harness.run();
  EXPECT_EQ(harness.outcomes[id].ids.size(), 28u);
  EXPECT_EQ(harness.outcomes[id].finish, FinishReason::context_full);
}

TEST(Engine, WhatCanNeverWorkIsRefusedAtOnce) {
  FakeRunner runner(2, kVocab, 300, 512);
  Harness harness(runner, engine_options());
  const auto kind = [&](Request request) {
    try {
      harness.submit(std::move(request));
    } catch (const Error& error) {
      return std::string(to_string(error.kind()));
    }
    return std::string("accepted");
  };
  EXPECT_EQ(kind(request_of({})), "bad_input");
  EXPECT_EQ(kind(request_of({kVocab})), "bad_input");
  EXPECT_EQ(kind(request_of({-1})), "bad_input");
  EXPECT_EQ(kind(request_of({1}, 0)), "bad_input");
  EXPECT_EQ(kind(request_of(prompt_of(300, 1))), "bad_input");
  EXPECT_EQ(kind(request_of(prompt_of(128, 1))), "out_of_memory");
  EXPECT_EQ(kind(request_of(prompt_of(127, 1))), "accepted");
  Request request = request_of({1});
  request.stop_ids = {kVocab};
  EXPECT_EQ(kind(request), "bad_input");
  request = request_of({1});
  request.stop_strings = {"x"};
  EXPECT_EQ(kind(request), "bad_input") << "stop strings need a tokenizer";
  request = request_of({1});
  request.sampling.top_p = 2;
  EXPECT_EQ(kind(request), "bad_input");
  EXPECT_THROW(Harness(runner,
                       [] {
                         EngineOptions o;
                         o.max_context = 301;
                         return o;
                       }()),
               Error);
  EXPECT_THROW(Harness(runner, engine_options(0)), Error);
  EXPECT_THROW(Harness(runner, engine_options(1, 0)), Error);
}

TEST(Engine, CancelWorksForRunningAndWaitingOnes) {
  FakeRunner runner(8, kVocab, 4096, 512);
  Harness harness(runner, engine_options(512, 1));
  const uint64_t a = harness.submit(request_of({1}, 1000)), b = harness.submit(request_of({2}, 5));
  harness.engine.step();
  harness.engine.step();
  harness.engine.cancel(b);
  harness.engine.cancel(a);
  harness.engine.cancel(a);
  harness.engine.cancel(999);
  EXPECT_FALSE(harness.engine.step());
  EXPECT_EQ(harness.outcomes[a].finish, FinishReason::cancelled);
  EXPECT_EQ(harness.outcomes[a].ids.size(), 2u);
  EXPECT_EQ(harness.outcomes[b].finish, FinishReason::cancelled);
  EXPECT_TRUE(harness.outcomes[b].ids.empty());
  EXPECT_EQ(runner.pool().n_free(), 8);
  harness.engine.cancel(a);
  EXPECT_FALSE(harness.engine.step());
}

TEST(Engine, CallbacksMayCancelAnyoneAndSubmit) {
  FakeRunner runner(8, kVocab, 4096, 512);
  Harness harness(runner, engine_options());
  uint64_t other = 0, late = 0;
  const Request late_request = request_of({9, 9}, 4);
  const uint64_t a = harness.submit(request_of({1}, 1000), [&](const TokenEvent& event) {
    if (harness.outcomes[event.request].ids.size() != 3 || !event.id) return;
    harness.engine.cancel(event.request);
    harness.engine.cancel(other);
    late = harness.submit(late_request);
    EXPECT_THROW(harness.engine.step(), Error);
  });
  other = harness.submit(request_of({2}, 1000));
  harness.run();
  EXPECT_EQ(harness.outcomes[a].finish, FinishReason::cancelled);
  EXPECT_EQ(harness.outcomes[a].ids.size(), 3u);
  EXPECT_EQ(harness.outcomes[other].finish, FinishReason::cancelled);
  EXPECT_EQ(harness.outcomes[other].ids.size(), 2u) << "its row of that step is dropped";
  EXPECT_EQ(harness.outcomes[late].ids, reference(late_request));
  EXPECT_EQ(runner.pool().n_free(), 8);
}

TEST(Engine, AFailingModelEndsEveryRequestOnceAndTheErrorGoesOn) {
  FakeRunner runner(8, kVocab, 4096, 512);
  runner.fail_at = 3;
  Harness harness(runner, engine_options(512, 2));
  for (int i = 0; i < 5; ++i) harness.submit(request_of({i}, 1000));
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(harness.engine.step());
  EXPECT_THROW(harness.engine.step(), std::runtime_error);
  EXPECT_FALSE(harness.engine.step());
  ASSERT_EQ(harness.outcomes.size(), 5u);
  for (const auto& [id, outcome] : harness.outcomes) {
    EXPECT_EQ(outcome.finish, FinishReason::error) << id;
    EXPECT_EQ(outcome.error, "the fake model broke");
    EXPECT_EQ(outcome.n_ends, 1);
  }
  EXPECT_EQ(runner.pool().n_free(), 8);
  runner.fail_at = -1;
  const Request request = request_of({7}, 5);
  const uint64_t id = harness.submit(request);
  harness.run();
  EXPECT_EQ(harness.outcomes[id].ids, reference(request)) << "the engine is still good";
}

TEST(Engine, ARowThatIsNoNumbersEndsItsRequestAlone) {
  FakeRunner runner(8, kVocab, 4096, 512);
  runner.poison_id = 66;
  Harness harness(runner, engine_options());
  const Request good = request_of({1, 2}, 10);
  const uint64_t a = harness.submit(request_of({66, 2}, 10)), b = harness.submit(good);
  harness.run();
  EXPECT_EQ(harness.outcomes[a].finish, FinishReason::error);
  EXPECT_THAT(harness.outcomes[a].error, testing::HasSubstr("not numbers"));
  EXPECT_EQ(harness.outcomes[a].error_kind, ErrorKind::bad_input);
  EXPECT_TRUE(harness.outcomes[a].ids.empty());
  EXPECT_EQ(harness.outcomes[b].ids, reference(good));
}

TEST(Engine, AThrowingCallbackLosesNobodysTokens) {
  FakeRunner runner(8, kVocab, 4096, 512);
  Harness harness(runner, engine_options());
  int n_thrown = 0;
  harness.submit(request_of({1}, 6), [&](const TokenEvent&) {
    if (++n_thrown == 2) throw std::runtime_error("the client is gone");
  });
  const Request request = request_of({2, 3}, 6);
  const uint64_t b = harness.submit(request);
  bool more = true;
  int n_caught = 0;
  while (more) {
    try {
      more = harness.engine.step();
    } catch (const std::runtime_error&) {
      ++n_caught;
    }
  }
  EXPECT_EQ(n_caught, 1);
  EXPECT_EQ(harness.outcomes[b].ids, reference(request));
  EXPECT_EQ(runner.pool().n_free(), 8);
}

TEST(Engine, PagesHeldElsewhereAreAnErrorNotAHang) {
  FakeRunner runner(4, kVocab, 4096, 512);
  PageTable elsewhere(runner.pool());
  ASSERT_TRUE(elsewhere.try_reserve(3 * kPageTokens));
  Harness harness(runner, engine_options());
  const uint64_t id = harness.submit(request_of(prompt_of(100, 1), 5));
  harness.run(10);
  EXPECT_EQ(harness.outcomes[id].finish, FinishReason::error);
}

}  // namespace
}  // namespace firstlight

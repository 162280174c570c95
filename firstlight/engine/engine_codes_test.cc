// SPDX-License-Identifier: Apache-2.0
// The engine over a compressed cache: exact pages follow each sequence, and none is lost or missing.
#include <gtest/gtest.h>

#include <random>

#include "firstlight/base/error.h"
#include "firstlight/engine/engine_testing.h"
#include "firstlight/engine/exact_runner_testing.h"

namespace firstlight {
namespace {

TEST(EngineCodes, ManySequencesKeepTheirExactPagesThroughPreemption) {
  for (const auto& [n_pages, n_exact, budget] : {std::tuple{30, 40, 200}, {60, 25, 64}, {80, 11, 64}, {12, 12, 64}}) {
    ExactRunner runner(n_pages, n_exact, budget);
    Harness harness(runner, engine_options(budget, 256));
    std::mt19937 random(5);
    std::vector<std::pair<uint64_t, Request>> requests;
    for (int i = 0; i < 25; ++i) {
      const Request request =
          request_of(prompt_of(1 + static_cast<int>(random() % 400), i), 1 + static_cast<int>(random() % 120));
      requests.emplace_back(harness.submit(request), request);
    }
    harness.run();
    for (const auto& [id, request] : requests) EXPECT_EQ(harness.outcomes[id].ids, reference(request)) << id;
    EXPECT_EQ(runner.exact_pool()->n_free(), n_exact);
    EXPECT_EQ(runner.pool().n_free(), n_pages);
  }
}

TEST(EngineCodes, ACallbackThatThrowsHasItsNeighboursComputedAgain) {
  ExactRunner runner(40, 40, 100);
  Harness harness(runner, engine_options(100, 8));
  int left = 200;
  const auto throw_now_and_then = [&](const TokenEvent&) {
    if (--left % 7 == 0) throw std::runtime_error("callback");
  };
  std::vector<std::pair<uint64_t, Request>> requests;
  for (int i = 0; i < 4; ++i) {
    const Request request = request_of(prompt_of(50 + 90 * i, i), 150);
    requests.emplace_back(harness.submit(request, throw_now_and_then), request);
  }
  for (bool more = true; more;) {
    try {
      more = harness.engine.step();
    } catch (const std::runtime_error& error) {
      ASSERT_STREQ(error.what(), "callback");
    }
  }
  for (const auto& [id, request] : requests) EXPECT_EQ(harness.outcomes[id].ids, reference(request)) << id;
  EXPECT_EQ(runner.exact_pool()->n_free(), 40);
}

/// Two pages are all that a context of 128 tokens has: the pass's 512 ask for no more exact ones.
TEST(EngineCodes, ShortContextsNeedFewExactPages) {
  for (const auto& [n_pages, n_exact] : {std::pair{2, 2}, {8, 8}, {20, 6}}) {
    ExactRunner runner(n_pages, n_exact, 512);
    EngineOptions options = engine_options(512, 16);
    options.max_context = 128;
    Harness harness(runner, options);
    std::vector<std::pair<uint64_t, Request>> requests;
    for (int i = 0; i < 6; ++i) {
      const Request request = request_of(prompt_of(60 + 10 * i, i), 18);
      requests.emplace_back(harness.submit(request), request);
    }
    harness.run();
    for (const auto& [id, request] : requests) EXPECT_EQ(harness.outcomes[id].ids, reference(request)) << id;
    EXPECT_EQ(runner.exact_pool()->n_free(), n_exact);
  }
}

TEST(EngineCodes, APassThatOneSequenceCouldNotHoldIsRefused) {
  ExactRunner runner(40, 12, 512);
  try {
    Engine engine(runner, nullptr, engine_options(512, 4));
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::bad_input);
  }
}

}  // namespace
}  // namespace firstlight

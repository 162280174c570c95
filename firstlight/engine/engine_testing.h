// SPDX-License-Identifier: Apache-2.0
// What the engine's tests share: a harness that keeps each request's outcome, and the tokens that a request must get.
#pragma once
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "firstlight/engine/engine.h"
#include "firstlight/engine/fake_runner.h"

namespace firstlight {

inline constexpr int kVocab = 101;

struct Outcome {
  std::vector<int> ids;
  std::string text;
  FinishReason finish = FinishReason::running;
  std::string error;
  ErrorKind error_kind = ErrorKind::bug;
  int n_ends = 0;
};

class Harness {
 public:
  Harness(FakeRunner& runner, EngineOptions options, const Tokenizer* tokenizer = nullptr)
      : engine(runner, tokenizer, std::move(options)) {}

  uint64_t submit(Request request, std::function<void(const TokenEvent&)> also = {}) {
    return engine.submit(std::move(request), [this, also](const TokenEvent& event) {
      Outcome& outcome = outcomes[event.request];
      EXPECT_EQ(outcome.n_ends, 0) << "an event after the last one";
      if (event.id) outcome.ids.push_back(*event.id);
      outcome.text += event.text;
      outcome.error += event.error;
      outcome.error_kind = event.error_kind;
      outcome.finish = event.finish;
      outcome.n_ends += event.finish != FinishReason::running ? 1 : 0;
      if (also) also(event);
    });
  }
  void run(int max_steps = 100'000) {
    while (engine.step()) ASSERT_GT(--max_steps, 0) << "the engine does not come to an end";
  }

  std::map<uint64_t, Outcome> outcomes;
  Engine engine;
};

inline EngineOptions engine_options(int prefill_chunk = 512, int max_batch = 256) {
  EngineOptions options;
  options.prefill_chunk = prefill_chunk;
  options.max_batch = max_batch;
  options.stop_ids = {94};
  return options;
}

inline Request request_of(std::vector<int> prompt, int max_new_tokens = 8) {
  Request request;
  request.prompt = std::move(prompt);
  request.max_new_tokens = max_new_tokens;
  request.ignore_eos = true;
  return request;
}

inline std::vector<int> prompt_of(int n, int seed) {
  std::vector<int> out;
  for (int i = 0; i < n; ++i) out.push_back((i * 31 + seed * 7) % 90);
  return out;
}

/// What a request gets without an engine: the row of its whole history, again and again.
inline std::vector<int> reference(const Request& request) {
  std::vector<int> tokens = request.prompt, out;
  for (int i = 0; i < request.max_new_tokens; ++i) {
    std::vector<float> row = FakeRunner::row_of(tokens, kVocab);
    out.push_back(sample(row, request.sampling, tokens, static_cast<uint64_t>(i)));
    tokens.push_back(out.back());
  }
  return out;
}

}  // namespace firstlight

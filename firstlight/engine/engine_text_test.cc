// SPDX-License-Identifier: Apache-2.0
// The engine's text: detokenised as it comes, ended by stop strings wherever tokens are cut.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "firstlight/engine/engine_testing.h"

namespace firstlight {
namespace {

/// A tokenizer whose tokens are the bytes 0 to 94 + ' ' and two special ones: "~", "</s>".
Tokenizer tiny_tokenizer() {
  TokenizerSpec spec;
  for (int i = 0; i < 94; ++i) spec.tokens.push_back(std::string(1, static_cast<char>('!' + i)));
  spec.tokens.push_back("</s>");
  AddedToken stop;
  stop.id = 94;
  stop.content = "</s>";
  stop.special = true;
  spec.added.push_back(stop);
  // Byte-level pieces of "é" (C3 A9) and of "…" (E2 80 A6), in GPT-2's alphabet.
  for (const char* piece : {"Ã", "©", "â", "Ģ", "¦"}) spec.tokens.push_back(piece);
  spec.tokens.push_back("ab");
  return Tokenizer(std::move(spec));
}

TEST(Engine, TextIsThatOfTheTokens) {
  const Tokenizer tokenizer = tiny_tokenizer();
  FakeRunner runner(8, kVocab, 4096, 512);
  Harness harness(runner, engine_options(), &tokenizer);
  const Request request = request_of({1, 2}, 60);
  const uint64_t id = harness.submit(request);
  harness.run();
  EXPECT_EQ(harness.outcomes[id].text, tokenizer.decode(reference(request)));
}

TEST(Engine, StopStringsEndTheTextWhereverTokensAreCut) {
  const Tokenizer tokenizer = tiny_tokenizer();
  const Request base = request_of({1, 2}, 60);
  const std::vector<int> ids = reference(base);
  const std::string text = tokenizer.decode(ids);
  int n_found = 0;
  for (size_t at = 0; at + 3 < text.size(); ++at) {
    for (const size_t length : {1, 2, 3}) {
      const std::string stop = text.substr(at, length);
      if ((static_cast<unsigned char>(stop[0]) & 0xc0u) == 0x80u) continue;
      FakeRunner runner(8, kVocab, 4096, 512);
      Harness harness(runner, engine_options(), &tokenizer);
      Request request = base;
      request.stop_strings = {stop, "never there"};
      const uint64_t id = harness.submit(request);
      harness.run();
      const Outcome& outcome = harness.outcomes[id];
      EXPECT_EQ(outcome.text, text.substr(0, text.find(stop))) << stop;
      EXPECT_EQ(outcome.finish, FinishReason::stop_string) << stop;
      EXPECT_EQ(outcome.ids,
                std::vector<int>(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(outcome.ids.size())));
      ++n_found;
    }
  }
  EXPECT_GT(n_found, 100);
}

TEST(Engine, TextThatWasHeldBackComesWithTheEnd) {
  const Tokenizer tokenizer = tiny_tokenizer();
  const Request base = request_of({1, 2}, 6);
  const std::string text = tokenizer.decode(reference(base));
  ASSERT_FALSE(text.empty());
  FakeRunner runner(8, kVocab, 4096, 512);
  Harness harness(runner, engine_options(), &tokenizer);
  Request request = base;
  request.stop_strings = {text + "never"};
  const uint64_t id = harness.submit(request, [](const TokenEvent& event) {
    if (event.finish == FinishReason::running) {
      EXPECT_EQ(event.text, "") << "all of it may still become the stop string";
    }
  });
  harness.run();
  EXPECT_EQ(harness.outcomes[id].text, text);
  EXPECT_EQ(harness.outcomes[id].finish, FinishReason::length);
}

}  // namespace
}  // namespace firstlight

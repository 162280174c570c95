// SPDX-License-Identifier: Apache-2.0
// Stop strings, cut into pieces in every way, against a search character by character.
#include "firstlight/engine/stop_strings.h"

#include <gtest/gtest.h>

#include <random>

namespace firstlight {
namespace {

// The text up to the first stop string to be complete: grows by one character and looks at the end.
std::string reference(const std::string& text, const std::vector<std::string>& stops, bool& found) {
  for (size_t end = 1; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const std::string& stop : stops) {
      if (stop.size() <= end && text.compare(end - stop.size(), stop.size(), stop) == 0)
        longest = std::max(longest, stop.size());
    }
    if (longest != 0) {
      found = true;
      return text.substr(0, end - longest);
    }
  }
  found = false;
  return text;
}

TEST(StopStrings, TheOutcomeDoesNotDependOnThePieces) {
  std::mt19937 random(11);
  const auto word = [&](size_t longest) {
    std::string out;
    for (size_t i = 0, n = 1 + random() % longest; i < n; ++i) out.push_back("ab"[random() % 2]);
    return out;
  };
  int n_found = 0;
  for (int round = 0; round < 5000; ++round) {
    std::vector<std::string> stops;
    for (size_t i = 0, n = 1 + random() % 3; i < n; ++i) stops.push_back(word(6));
    const std::string text = word(30);
    StopStrings stream(stops);
    std::string out;
    for (size_t at = 0; at < text.size();) {
      const size_t n = std::min<size_t>(random() % 5, text.size() - at);
      out += stream.push(text.substr(at, n));
      at += n;
    }
    out += stream.finish();
    bool found = false;
    ASSERT_EQ(out, reference(text, stops, found)) << text << " " << stops[0];
    ASSERT_EQ(stream.found(), found);
    n_found += found ? 1 : 0;
  }
  EXPECT_GT(n_found, 1000);
  EXPECT_LT(n_found, 4990);
}

TEST(StopStrings, HoldsBackNoMoreThanMayBecomeAStopString) {
  StopStrings stream({"</s>"});
  EXPECT_EQ(stream.push("abc"), "abc");
  EXPECT_EQ(stream.push("d<"), "d");
  EXPECT_EQ(stream.push("/"), "");
  EXPECT_EQ(stream.push("x"), "</x");
  EXPECT_EQ(stream.push("<<"), "<");
  EXPECT_EQ(stream.push("/s"), "");
  EXPECT_EQ(stream.push("> never shown"), "");
  EXPECT_TRUE(stream.found());
  EXPECT_EQ(stream.push("nor this"), "");
  EXPECT_EQ(stream.finish(), "");
}

TEST(StopStrings, WithoutAnyTextPassesAtOnce) {
  StopStrings stream({});
  EXPECT_EQ(stream.push("abc"), "abc");
  EXPECT_FALSE(stream.found());
}

TEST(StopStrings, WhatIsHeldBackComesOutAtTheEnd) {
  StopStrings stream({"END"});
  EXPECT_EQ(stream.push("xEN"), "x");
  EXPECT_EQ(stream.finish(), "EN");
}

}  // namespace
}  // namespace firstlight

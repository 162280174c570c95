// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "firstlight/base/error.h"
#include "firstlight/cli/context.h"
#include "firstlight/cli/session.h"

namespace firstlight::cli {
namespace {

TEST(ParseSize, KnowsBinaryAndDecimalUnits) {
  EXPECT_EQ(parse_size("2GiB", "--memory"), 2ull << 30);
  EXPECT_EQ(parse_size("2G", "--memory"), 2ull << 30);
  EXPECT_EQ(parse_size("2GB", "--memory"), 2'000'000'000ull);
  EXPECT_EQ(parse_size("1.5MiB", "--memory"), 3ull << 19);
  EXPECT_EQ(parse_size("4096", "--memory"), 4096u);
}

TEST(ParseSize, RefusesWhatIsNoSizeAndNamesTheOption) {
  for (const char* text : {"", "GiB", "-1", "2 potatoes", "1e30T", "nan"}) {
    try {
      parse_size(text, "--memory");
      FAIL() << text;
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::bad_input);
      EXPECT_THAT(e.what(), testing::HasSubstr("--memory"));
    }
  }
}

TEST(Timeline, DrawsEveryPhaseWithItsTimes) {
  const std::string text = draw_timeline({{"open", 0.001, 0.002}, {"read", 0.002, 0.05}}, 0.1);
  EXPECT_THAT(text, testing::HasSubstr("open"));
  EXPECT_THAT(text, testing::HasSubstr("0.002 – 0.050"));
}

}  // namespace
}  // namespace firstlight::cli

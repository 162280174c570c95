// SPDX-License-Identifier: Apache-2.0
// Floors and expectations against arithmetic done by hand.
#include "firstlight/cli/load_floor.h"

#include <gtest/gtest.h>

#include <vector>

#include "firstlight/base/error.h"

namespace firstlight::cli {
namespace {

constexpr uint64_t kGB = 1'000'000'000;

TEST(LoadFloor, LinksAreReadFromNumberAndRate) {
  LoadHardware hardware;
  parse_links("8x55", hardware);
  EXPECT_EQ(hardware.n_links, 8);
  EXPECT_DOUBLE_EQ(hardware.link, 55e9);
  parse_links("1x54.5", hardware);
  EXPECT_DOUBLE_EQ(hardware.link, 54.5e9);
  for (const char* wrong :
       {"", "x", "8", "8x", "x55", "0x55", "-1x55", "8x0", "8x-5", "8xnan", "8xinf", "8 x 55", "8x55GB"})
    EXPECT_THROW(parse_links(wrong, hardware), Error) << wrong;
}

TEST(LoadFloor, IsTheSlowerOfStorageAndTheLargestRanksLink) {
  const std::vector<uint64_t> ranks{10 * kGB, 20 * kGB};
  const LoadFloor both = floor_of(ranks, {10e9, 2, 50e9});
  EXPECT_DOUBLE_EQ(both.storage_s, 3);
  EXPECT_DOUBLE_EQ(both.links_s, 0.4);
  EXPECT_DOUBLE_EQ(both.seconds, 3);
  EXPECT_DOUBLE_EQ(floor_of(ranks, {0, 2, 50e9}).seconds, 0.4);
  EXPECT_DOUBLE_EQ(floor_of(ranks, {10e9, 0, 0}).seconds, 3);
  EXPECT_THROW(floor_of(ranks, {0, 1, 50e9}), Error);
}

TEST(LoadFloor, ALoadIsExpectedToWaitForContextsOneAfterAnother) {
  const double bytes = 10e9;
  // One rank: its context, then its bytes at 95 % of the link (two: 83 %).
  EXPECT_NEAR(expected_load_seconds(std::vector<uint64_t>{10 * kGB}, {0, 1, 50e9}), 0.18 + bytes / (0.95 * 50e9), 1e-9);
  // Two ranks with links of their own: the second begins one context later and ends last.
  EXPECT_NEAR(expected_load_seconds(std::vector<uint64_t>{10 * kGB, 10 * kGB}, {0, 2, 50e9}),
              0.36 + bytes / (0.83 * 50e9), 1e-9);
  // One storage: from the first context on it is never idle, whoever is served.
  EXPECT_NEAR(expected_load_seconds(std::vector<uint64_t>{10 * kGB, 10 * kGB}, {10e9, 2, 50e9}),
              0.18 + 2 * bytes / (0.83 * 10e9), 1e-9);
  // A rank without bytes, and one that is done before the next begins.
  EXPECT_NEAR(expected_load_seconds(std::vector<uint64_t>{0, kGB / 1000}, {10e9, 2, 50e9}), 0.36 + 1e6 / (0.83 * 10e9),
              1e-9);
  EXPECT_EQ(expected_load_seconds(std::vector<uint64_t>{kGB}, {}), 0);
}

}  // namespace
}  // namespace firstlight::cli

// SPDX-License-Identifier: Apache-2.0
#include "firstlight/cli/tp_choice.h"

#include <gtest/gtest.h>

namespace firstlight::cli {
namespace {

namespace fs = std::filesystem;

TEST(StoredTps, AreTheDirectoriesOfARankCheckpoint) {
  const fs::path folder = fs::path(testing::TempDir()) / "stored_tps_test";
  fs::remove_all(folder);
  for (const char* name : {"tp1", "tp12", "tp2", "tp0", "tp", "tpx", "tp3.partial", "other", "tp-4"})
    fs::create_directories(folder / name);
  EXPECT_EQ(stored_tps(folder), (std::vector{1, 2, 12}));
  EXPECT_EQ(stored_tps(folder / "nothing"), std::vector<int>{});
}

TEST(TpFor, IsTheLargestThatHasAGpuForEachRank) {
  EXPECT_EQ(tp_for({1, 2, 4}, 8), 4);
  EXPECT_EQ(tp_for({1, 2, 4}, 3), 2);
  EXPECT_EQ(tp_for({1, 2, 4}, 1), 1);
  EXPECT_EQ(tp_for({1, 2, 4}, 0), 1);
  EXPECT_EQ(tp_for({4, 8}, 2), 4);  // ranks share GPUs then
  EXPECT_EQ(tp_for({}, 2), 1);
}

}  // namespace
}  // namespace firstlight::cli

// SPDX-License-Identifier: Apache-2.0
#include "firstlight/cli/visible_gpus.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

namespace firstlight::cli {
namespace {

namespace fs = std::filesystem;
using Names = std::vector<std::string>;

/// A folder of its own with these empty files in it.
fs::path folder_of(const Names& names) {
  const fs::path folder = fs::path(testing::TempDir()) / "visible_gpus_test" /
                          testing::UnitTest::GetInstance()->current_test_info()->name();
  fs::remove_all(folder);
  fs::create_directories(folder);
  for (const std::string& name : names) std::ofstream(folder / name) << "";
  return folder;
}

TEST(VisibleGpus, AreTheVariablesEntriesAsCudaReadsThem) {
  EXPECT_EQ(visible_gpus("0,1,5"), (Names{"0", "1", "5"}));
  EXPECT_EQ(visible_gpus("GPU-8932f937,MIG-1"), (Names{"GPU-8932f937", "MIG-1"}));
  EXPECT_EQ(visible_gpus("2,-1,3"), (Names{"2"}));
  EXPECT_EQ(visible_gpus(""), Names{});
  EXPECT_EQ(visible_gpus("-1"), Names{});
}

TEST(VisibleGpus, AreTheDeviceFilesWithoutTheVariable) {
  const fs::path dev = folder_of({"nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-modeset", "null"});
  EXPECT_EQ(visible_gpus(std::nullopt, dev), (Names{"0", "1"}));
  EXPECT_EQ(visible_gpus(std::nullopt, dev / "nothing"), Names{});
}

TEST(StoredTps, AreTheDirectoriesOfARankCheckpoint) {
  EXPECT_EQ(stored_tps(folder_of({"tp1", "tp12", "tp2", "tp0", "tp", "tpx", "tp3.partial", "manifest.json"})),
            (std::vector{1, 2, 12}));
  EXPECT_EQ(stored_tps("no/such/model"), std::vector<int>{});
}

TEST(TpFor, IsTheLargestThatHasAGpuForEachRank) {
  EXPECT_EQ(tp_for({1, 2, 4}, 8), 4);
  EXPECT_EQ(tp_for({1, 2, 4}, 3), 2);
  EXPECT_EQ(tp_for({1, 2, 4}, 1), 1);
  EXPECT_EQ(tp_for({1, 2, 4}, 0), 1);
  EXPECT_EQ(tp_for({4, 8}, 2), 4);  // ranks share GPUs then
  EXPECT_EQ(tp_for({}, 2), 1);
}

TEST(GpusNeeded, AreOneARankUnlessOneIsNamed) {
  EXPECT_EQ(gpus_needed("cpu", 4), 0);
  EXPECT_EQ(gpus_needed("auto", 2), 2);
  EXPECT_EQ(gpus_needed("cuda", 3), 3);
  EXPECT_EQ(gpus_needed("cuda:2", 4), 3);  // numbers stay those of the user
}

TEST(ShowGpus, KeepsTheFirstOnes) {
  ::unsetenv("CUDA_VISIBLE_DEVICES");
  show_gpus({"0", "1"}, 2);
  show_gpus({"0", "1"}, 0);
  show_gpus({}, 1);
  EXPECT_EQ(std::getenv("CUDA_VISIBLE_DEVICES"), nullptr);
  show_gpus({"7", "GPU-a", "3"}, 2);
  EXPECT_STREQ(std::getenv("CUDA_VISIBLE_DEVICES"), "7,GPU-a");
  ::unsetenv("CUDA_VISIBLE_DEVICES");
}

}  // namespace
}  // namespace firstlight::cli

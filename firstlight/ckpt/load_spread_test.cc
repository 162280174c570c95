// SPDX-License-Identifier: Apache-2.0
// Loading from a parallel file system whose layout is known: another order of reads, the same bytes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "firstlight/ckpt/load_fixture.h"
#include "firstlight/ckpt/load_jobs.h"

namespace firstlight {
namespace {

using testing::HasSubstr;

class LoadSpreadTest : public LoadTest {};

TEST_F(LoadSpreadTest, TheBytesAreTheSameAndTheReportSaysHowTheyWereRead) {
  LoadOptions options;
  options.tp = 2;
  std::vector<std::string> asked;
  options.find_layouts = [&](const std::vector<std::string>& files) {
    asked = files;
    FoundLayouts found;
    for (const std::string& file : files) found.layouts[file].extents = {{0, UINT64_MAX, 1u << 16, {4, 0, 9}}};
    return found;
  };
  const auto load = load_rank_checkpoint(out_, options);
  EXPECT_THAT(load->wait().why, HasSubstr("; reads spread over 3 Lustre targets of a file"));
  for (const RankWeights& weights : load->weights()) expect_weights(load->config(), weights);
  EXPECT_GE(asked.size(), 2u);
  for (const std::string& file : asked) EXPECT_TRUE(fs::path(file).is_absolute() && fs::exists(file)) << file;

  options.find_layouts = [](const auto&) { return FoundLayouts{{}, "lfs is not installed, or failed"}; };
  EXPECT_THAT(load_rank_checkpoint(out_, options)->wait().why,
              HasSubstr("Lustre layout not known (lfs is not installed, or failed): reads in plain order"));
  options.find_layouts = nullptr;
  EXPECT_EQ(load_rank_checkpoint(out_, options)->wait().why.find("Lustre"), std::string::npos);
}

TEST_F(LoadSpreadTest, RequestsInARowAreOnDifferentTargets) {
  ManifestRank rank;
  ManifestPart part;
  part.data_bytes = part.tail_begin = 100u << 20;
  rank.parts = {part};
  RankFiles files;
  files.manifest = &rank;
  files.region_begin = {0};
  files.parts = {File::open(out_ / "config.json")};
  LoadSpread spread;
  spread.layouts[fs::absolute(files.parts[0]->path()).native()].extents = {{0, UINT64_MAX, 16u << 20, {0, 1, 2}}};
  spread.in_flight = 3;
  const std::span<const RankFiles> all(&files, 1);
  std::vector<uint64_t> plain, spread_out;
  for (const LoadJob& job : plan_load_jobs(all, kRequestBytes, false)) plain.push_back(job.begin >> 20);
  for (const LoadJob& job : plan_load_jobs(all, kRequestBytes, false, spread)) spread_out.push_back(job.begin >> 20);
  ASSERT_EQ(plain.size(), 25u);
  EXPECT_EQ((std::vector<uint64_t>{plain.begin(), plain.begin() + 4}), (std::vector<uint64_t>{0, 4, 8, 12}));
  // The data begin at 2 MiB: requests 0 to 12 of these MiB are on target 0 (the last by most of its bytes), 16 is on 1.
  EXPECT_EQ((std::vector<uint64_t>{spread_out.begin(), spread_out.begin() + 6}),
            (std::vector<uint64_t>{0, 12, 28, 4, 16, 32}));
  std::sort(spread_out.begin(), spread_out.end());
  EXPECT_EQ(spread_out, plain);
}

TEST_F(LoadSpreadTest, PaddingsAreReadToWhereTheyCanComePastThePageCache) {
  ManifestRank rank;
  ManifestPart part;
  part.data_bytes = part.tail_begin = 1u << 20;
  for (const uint64_t header : {23'949u, 4096u, 1'000'001u}) {
    part.header_bytes = header;
    rank.parts.push_back(part);
  }
  RankFiles files;
  files.manifest = &rank;
  files.region_begin = {0, 1u << 20, 2u << 20};
  files.parts.assign(3, File::open(out_ / "config.json"));
  uint64_t end = 0, n = 0;
  for (const LoadJob& job : plan_load_jobs({&files, 1}, kRequestBytes, true)) {
    if (job.kind != LoadJob::Kind::padding) continue;
    ++n;
    EXPECT_EQ(job.at % kPageBytes, job.file_begin() % kPageBytes) << "memory and file are aligned at the same places";
    EXPECT_GE(job.at, end) << "behind the padding of the part before";
    end = job.at + job.size();
  }
  EXPECT_EQ(n, 3u);
  EXPECT_LE(end, padding_bytes(rank));
}

}  // namespace
}  // namespace firstlight

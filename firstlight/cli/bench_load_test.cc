// SPDX-License-Identifier: Apache-2.0
// What `bench load` computes and reads; never how fast.
#include "firstlight/cli/bench_load.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/io/ring.h"

namespace firstlight::cli {
namespace {

using testing::HasSubstr;

TEST(Spread, KnowsTheMiddleOfOddAndEvenCounts) {
  EXPECT_EQ(Spread({3, 1, 2}).median, 2);
  EXPECT_EQ(Spread({4, 1, 3, 2}).median, 2.5);
  EXPECT_EQ(Spread({5, 1, 9}).least, 1);
  EXPECT_EQ(Spread({5, 1, 9}).most, 9);
}

TEST(Line, GoesThroughPointsThatLieOnOneAndBetweenOthers) {
  const std::vector<Line::Point> exact{{1, 5}, {2, 7}, {10, 23}};
  EXPECT_DOUBLE_EQ(Line(exact).slope, 2);
  EXPECT_DOUBLE_EQ(Line(exact).intercept, 3);
  const std::vector<Line::Point> scattered{{0, 0}, {0, 2}, {2, 4}, {2, 8}};  // means 1 and 6
  EXPECT_DOUBLE_EQ(Line(scattered).slope, 2.5);
  EXPECT_DOUBLE_EQ(Line(scattered).intercept, 1);
}

class ReadBenchTest : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = fs::path(testing::TempDir()) / str("read_bench_test.", ::getpid());
    fs::create_directories(directory_);
    for (const size_t size : {300'001, 4095, 1'000'000}) {  // the second has no whole page
      const fs::path path = directory_ / std::to_string(size);
      std::string bytes(size, 0);
      for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<char>((i * 31 + size) >> 3);
      std::ofstream(path, std::ios::binary) << bytes;
      files_.push_back(File::open(path));
      expected_ += bytes.substr(0, size / 4096 * 4096);
    }
  }
  void TearDown() override { fs::remove_all(directory_); }
  std::string got(const ReadBench& bench, size_t n) const {
    return {reinterpret_cast<const char*>(bench.data().data()), n};
  }

  fs::path directory_;
  std::vector<std::shared_ptr<const File>> files_;
  std::string expected_;
};

TEST_F(ReadBenchTest, EveryWayReadsEveryWholePageOfEveryFile) {
  for (const uint64_t piece : {4096u, 65536u, 16u << 20}) {
    for (const ReaderKind kind : {ReaderKind::pread, ReaderKind::io_uring}) {
      if (kind == ReaderKind::io_uring && !why_no_io_uring().empty()) continue;
      ReadBench bench(files_, UINT64_MAX);
      ASSERT_EQ(bench.bytes(), expected_.size());
      EXPECT_GT(bench.by_reader(kind, {piece, 8, 3}, bench.bytes()), 0);
      EXPECT_EQ(got(bench, expected_.size()), expected_) << piece;
    }
    ReadBench bench(files_, UINT64_MAX);
    EXPECT_GT(bench.by_system_calls(false, false, {piece, 8, 3}), 0);
    EXPECT_EQ(got(bench, expected_.size()), expected_) << piece;
    EXPECT_GT(bench.by_system_calls(false, true, {piece, 8, 3}), 0);
  }
}

TEST_F(ReadBenchTest, FewerBytesAreTheFirstOnes) {
  ReadBench bench(files_, 500'000);
  ASSERT_EQ(bench.bytes(), 499'712u);
  bench.by_reader(ReaderKind::pread, {8192, 1, 1}, 303'104);  // the first file, and a page of the third
  EXPECT_EQ(got(bench, 303'104), expected_.substr(0, 303'104));
  EXPECT_EQ(got(bench, 303'105).back(), 0);
  EXPECT_THROW(ReadBench(files_, 100), Error);
}

TEST_F(ReadBenchTest, AReadThatFailsIsAnErrorAndNotAFigure) {
  ReadBench bench(files_, UINT64_MAX);
  fs::resize_file(directory_ / "1000000", 8192);
  EXPECT_THROW(bench.by_reader(ReaderKind::pread, {}, bench.bytes()), Error);
  EXPECT_THROW(bench.by_system_calls(false, false, {}), Error);
}

TEST(BenchLoad, SeriesAreMeasuredInTurnAndTheFirstRoundIsNotCounted) {
  std::string order;
  std::vector<BenchSeries> series(2);
  series[0].run = [&] { return order += 'a', static_cast<double>(order.size()); };
  series[1].run = [&] { return order += 'b', static_cast<double>(order.size()); };
  measure_in_turn(series, 2, {});
  EXPECT_EQ(order, "ababab");
  EXPECT_EQ(series[0].seconds, (std::vector<double>{3, 5}));
  EXPECT_EQ(series[1].seconds, (std::vector<double>{4, 6}));
  std::stop_source stopped;
  stopped.request_stop();
  EXPECT_THROW(measure_in_turn(series, 1, stopped.get_token()), Interrupted);
}

TEST(BenchLoad, TheReportSetsEachFigureBesideTheFloorOfItsState) {
  BenchLoadReport report;
  report.sweep_bytes = 1'000'000'000;
  report.loads = {{"floor a", "warm", "", true, 2'000'000'000, {}, {0.5, 0.8, 0.4}},
                  {"load", "warm", "full", false, 2'000'000'000, {}, {1.0, 0.8, 2.0}},
                  {"floor b", "cold", "", true, 2'000'000'000, {}, {2.0}},
                  {"load", "cold", "off", false, 2'000'000'000, {}, {4.0}}};
  report.sweep = {{"io_uring", "cold", {1 << 20, 16, 2}, Spread({0.5, 0.25, 1})}};
  report.lines = {{"pread", "warm", {{1e9, 0.11}, {2e9, 0.21}}}};
  const nlohmann::ordered_json json = to_json(report);
  EXPECT_DOUBLE_EQ(json["loads"][1]["gb_per_s"], 2.0);
  EXPECT_DOUBLE_EQ(json["loads"][1]["share_of_floor"], 0.5);
  EXPECT_DOUBLE_EQ(json["loads"][3]["share_of_floor"], 0.5);
  EXPECT_DOUBLE_EQ(json["sweep"][0]["gb_per_s"], 2.0);
  EXPECT_DOUBLE_EQ(json["sweep"][0]["max_gb_per_s"], 4.0);
  EXPECT_NEAR(json["time_against_bytes"][0]["gb_per_s"], 10.0, 1e-9);
  EXPECT_NEAR(json["time_against_bytes"][0]["intercept_s"], 0.01, 1e-12);
  const std::string text = to_markdown(report);
  EXPECT_THAT(text, HasSubstr("| load | warm | full | 2.00 (1.00–2.50) | 50.0 % |"));
  EXPECT_THAT(text, HasSubstr("| floor b | cold | – | 1.00 (1.00–1.00) | – |"));
  EXPECT_THAT(text, HasSubstr("| io_uring | cold | 1024 KiB | 16 | 2 | 2.00 (1.00–4.00) |"));
  EXPECT_THAT(text, HasSubstr("| pread | warm | 10.00 | 10.0 ms |"));
}

}  // namespace
}  // namespace firstlight::cli

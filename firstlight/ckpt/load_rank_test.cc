// SPDX-License-Identifier: Apache-2.0
// Loading one rank of several, as a process of its own does.
#include <gtest/gtest.h>

#include "firstlight/ckpt/load_fixture.h"
#include "firstlight/io/pread_reader.h"

namespace firstlight {
namespace {

class LoadRankTest : public LoadTest {};

TEST_F(LoadRankTest, OneRankIsItsSliceAndNoOtherFileIsTouched) {
  for (int rank = 0; rank < 4; ++rank) {
    const fs::path directory = out_ / "tp4" / str("rank-0", rank), hidden = out_ / "hidden";
    fs::create_directory(hidden);
    for (int other = 0; other < 4; ++other) {  // the others' weights are not to be had
      const std::string name = str("rank-0", other);
      if (other != rank) fs::rename(out_ / "tp4" / name, hidden / name);
    }
    LoadOptions options;
    options.tp = 4;
    options.rank = rank;
    options.n_threads = 2;
    const auto load = load_rank_checkpoint(out_, options);
    const LoadReport report = load->wait();
    ASSERT_EQ(load->weights().size(), 1u);
    EXPECT_EQ(load->weights()[0].rank, rank);
    EXPECT_EQ(load->weights()[0].tp, 4);
    EXPECT_EQ(load->weights()[0].vocab_begin, rank * 251);  // 1003 rows, padded to 1004
    expect_weights(load->config(), load->weights()[0]);
    ASSERT_EQ(report.ranks.size(), 1u);
    EXPECT_EQ(report.ranks[0].rank, rank);
    EXPECT_EQ(report.bytes, report.ranks[0].bytes);
    for (int other = 0; other < 4; ++other) {
      const std::string name = str("rank-0", other);
      if (other != rank) fs::rename(hidden / name, out_ / "tp4" / name);
    }
    fs::remove(hidden);
  }
}

TEST_F(LoadRankTest, ProcessesThatLoadAtOnceShareThreads) {
  for (const auto& [n_processes, expected] : {std::pair{1, 9}, {2, 4}, {4, 2}, {20, 1}}) {
    int asked_for = 0;
    LoadOptions options;
    options.tp = 4;
    options.rank = 0;
    options.n_threads = 9;
    options.n_processes = n_processes;
    options.make_reader = [&](int n_threads) {
      asked_for = n_threads;
      return std::make_unique<PreadReader>(n_threads);
    };
    load_rank_checkpoint(out_, options)->wait();
    EXPECT_EQ(asked_for, expected) << n_processes;
  }
}

TEST_F(LoadRankTest, ARankThatIsNotOneIsRefused) {
  for (const int rank : {-1, 2}) {
    LoadOptions options;
    options.tp = 2;
    options.rank = rank;
    expect_error(ErrorKind::bug, {"LoadOptions::rank"}, options);
  }
  LoadOptions options;
  options.rank = 0;
  EXPECT_THROW(load_traditionally(FakeSource(), options), Error);
}

}  // namespace
}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// Ranks that are processes, here threads with a connection each, against the same ranks as threads of one runner.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <thread>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/comm/process_comm.h"
#include "firstlight/model/batch_message.h"
#include "firstlight/model/runner_testing.h"

namespace firstlight {
namespace {

/// The model of `fixture` cut into ranks 0 to tp − 1, each with its own end of a group: fn(runner) on rank 0; what each
/// rank threw, "" if nothing.
template <class Fn>
std::vector<std::string> on_process_ranks(int tp, Fixture& fixture, Fn fn) {
  static int n = 0;
  const std::string group = str("crew ", ::getpid(), " ", n++);
  std::vector<std::string> thrown(static_cast<size_t>(tp));
  std::vector<std::thread> threads;
  for (int r = 0; r < tp; ++r) {
    threads.emplace_back([&, r] {
      try {
        const auto comm = ProcessComm::join({r, tp, group}, {});
        std::vector<RankWeights> weights;
        weights.push_back(cut(fixture.model, tp, r, DType::f32));
        for (int g = 0; g < n_gates(fixture.model.config); ++g) weights[0].ready->open(g);
        RunnerOptions options = fixture.options;
        options.processes = comm.get();
        if (r == 0) {
          const auto runner = make_runner(fixture.model.config, weights, options);
          fn(*runner);
          runner->finish();
        } else {
          follow_passes(fixture.model.config, weights, options);
        }
        comm->leave();
      } catch (const std::exception& e) {
        thrown[static_cast<size_t>(r)] = e.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return thrown;
}

struct Passes {
  std::vector<float> logits;
  std::vector<int> likeliest, drawn;
};

/// Two sequences at once, one of them in chunks; of each pass logits, the likeliest token and what is drawn.
Passes passes_of(Runner& runner) {
  Passes all;
  const std::vector<int> long_ids = tokens_of(150), short_ids = tokens_of(9, 3);
  PageTable long_pages(runner.pool(), runner.exact_pool()), short_pages(runner.pool(), runner.exact_pool());
  EXPECT_TRUE(long_pages.try_reserve(150) && short_pages.try_reserve(9));
  const auto chunk = [&](int64_t begin, size_t n, int n_logits) {
    return SequenceChunk{std::span(long_ids).subspan(static_cast<size_t>(begin), n), begin, &long_pages, n_logits};
  };
  const std::vector<std::vector<SequenceChunk>> batches{
      {chunk(0, 70, 0)}, {chunk(70, 60, 3), {short_ids, 0, &short_pages, 9}}, {chunk(130, 20, 20)}};
  for (const std::vector<SequenceChunk>& batch : batches) {
    std::vector<float> logits;
    runner.forward(batch, logits);
    all.logits.insert(all.logits.end(), logits.begin(), logits.end());
    std::vector<Likeliest> likeliest;
    runner.forward_greedy(batch, likeliest);
    for (const Likeliest& each : likeliest) all.likeliest.push_back(each.id);
    std::vector<Draw> draws;
    for (size_t i = 0; i < likeliest.size(); ++i) draws.push_back({{.temperature = 2, .seed = 5}, {}, i});
    std::vector<int> drawn;
    runner.forward_drawn(batch, draws, drawn);
    all.drawn.insert(all.drawn.end(), drawn.begin(), drawn.end());
  }
  return all;
}

TEST(ProcessCrew, ComputesTheBitsOfThreads) {
  for (const KvKind kv : {KvKind::f32, KvKind::tq8}) {
    for (const int tp : {2, 3, 4}) {
      ModelConfig config = small_config();
      if (kv != KvKind::f32) config.head_dim = 64;  // what codes come in
      if (tp == 3) config.n_kv_heads = 3;
      Fixture fixture(tp, config);
      fixture.options.make_ops = nullptr;  // the program's own
      fixture.options.kv = kv;
      if (kv != KvKind::f32) fixture.options.n_exact_pages = 24;
      const auto threads = make_runner(config, fixture.weights, fixture.options);
      const Passes expected = passes_of(*threads);
      Passes got;
      std::string path;
      const auto thrown = on_process_ranks(tp, fixture, [&](Runner& runner) {
        got = passes_of(runner);
        path = runner.comm_path();
      });
      for (const std::string& what : thrown) EXPECT_EQ(what, "");
      EXPECT_EQ(path, "shared memory between processes");
      EXPECT_EQ(expected.logits.size(), 32u * 61u);
      EXPECT_EQ(got.logits, expected.logits) << "tp " << tp;
      EXPECT_EQ(got.likeliest, expected.likeliest) << "tp " << tp;
      EXPECT_EQ(got.drawn, expected.drawn) << "tp " << tp;
    }
  }
}

TEST(ProcessCrew, ABatchThatIsRefusedIsNoFailureOfTheOthers) {
  Fixture fixture(2);
  const auto thrown = on_process_ranks(2, fixture, [&](Runner& runner) {
    PageTable pages(runner.pool());
    ASSERT_TRUE(pages.try_reserve(9));
    std::vector<int> ids = tokens_of(9);
    std::vector<float> logits;
    ids[3] = 61;
    const SequenceChunk chunk{ids, 0, &pages, 1};
    EXPECT_THROW(runner.forward({&chunk, 1}, logits), Error);
    ids[3] = 60;
    runner.forward({&chunk, 1}, logits);
    EXPECT_EQ(logits, fixture.logits(ids, 1));
  });
  for (const std::string& what : thrown) EXPECT_EQ(what, "");
}

TEST(ProcessCrew, WhatEndsOneRankEndsAllWithItsCause) {
  Fixture fixture(3, [] {
    ModelConfig config = small_config();
    config.n_kv_heads = 3;
    return config;
  }());
  std::atomic<int> n_made = 0;
  fixture.options.make_ops = [&](ThreadPool&) -> std::unique_ptr<Ops> {
    if (++n_made == 3) throw Error(ErrorKind::out_of_memory, "no room for this rank");
    return std::make_unique<ReferenceOps>();
  };
  const auto thrown = on_process_ranks(3, fixture, [&](Runner& runner) { passes_of(runner); });
  for (const std::string& what : thrown) {
    // The last one throws before it follows: its process ends, and that is what the others see of it here.
    EXPECT_THAT(what, testing::AnyOf("no room for this rank", testing::HasSubstr("its process is gone")));
  }
}

TEST(ProcessCrew, ABatchIsTheSameAfterItsMessage) {
  const std::vector<int32_t> pages{5, 2, 9}, exact{1, -1, 0};
  Batch batch;
  batch.ids = {7, 8, 9, 10};
  batch.spans = {{0, 3, 130, pages.data(), exact.data()}, {3, 1, 0, pages.data(), nullptr}};
  batch.spans[0].exact_from = 2;
  batch.wanted = {{1, 2, 131, pages.data(), exact.data(), 2}};
  const std::vector<std::byte> message = batch_message(PassKind::likeliest, batch);
  const ReceivedBatch got = read_batch_message(message);
  EXPECT_EQ(got.kind, PassKind::likeliest);
  EXPECT_EQ(got.batch.ids, batch.ids);
  EXPECT_EQ(got.n_wanted, 2);
  ASSERT_EQ(got.batch.spans.size(), 2u);
  ASSERT_EQ(got.batch.wanted.size(), 1u);
  const AttentionSpan &first = got.batch.spans[0], &wanted = got.batch.wanted[0];
  EXPECT_EQ(first.position, 130);
  EXPECT_EQ(std::vector<int32_t>(first.pages, first.pages + 3), pages);
  EXPECT_EQ(std::vector<int32_t>(first.exact, first.exact + 3), exact);
  EXPECT_EQ(got.batch.spans[1].pages[0], 5);
  EXPECT_EQ(first.exact_from, 2);
  EXPECT_EQ(got.batch.spans[1].exact, nullptr);
  EXPECT_EQ(got.batch.spans[1].exact_from, batch.spans[1].exact_from);
  EXPECT_EQ(wanted.exact_from, 2);
  EXPECT_EQ(wanted.row_begin, 1);
  EXPECT_EQ(wanted.n_rows, 2);
  EXPECT_EQ(wanted.position, 131);
  EXPECT_EQ(wanted.pages, first.pages);
  for (size_t size = 0; size < message.size(); size += 8) {
    const std::vector<std::byte> cut_off(message.begin(), message.begin() + static_cast<std::ptrdiff_t>(size));
    EXPECT_THROW(read_batch_message(cut_off), Error) << size;
  }
}

}  // namespace
}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// The forward pass with reference arithmetic: ranks, gates, pages, chunks. Against transformers: tests/golden_test.cc.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <set>
#include <thread>

#include "firstlight/base/error.h"
#include "firstlight/model/reference_ops.h"
#include "firstlight/model/runner_testing.h"

namespace firstlight {
namespace {

TEST(Runner, EveryTensorParallelSplitGivesTheSameLogitsWithoutPadding) {
  const std::vector<int> ids = tokens_of(75);
  const std::vector<float> whole = Fixture(1).logits(ids, 75);
  ASSERT_EQ(whole.size(), 75u * 61u);
  float spread = 0;
  for (const float x : whole) spread = std::max(spread, std::abs(x));
  EXPECT_GT(spread, 3);  // the model says something
  for (const int tp : {2, 4, 12})
    EXPECT_LT(largest_difference(Fixture(tp).logits(ids, 75), whole), 2e-4f) << "tp " << tp;
}

TEST(Runner, TiedEmbeddingsServeAsTheHeadAtEverySplit) {
  ModelConfig config = small_config();
  config.tied_embeddings = true;
  const std::vector<int> ids = tokens_of(20);
  const std::vector<float> whole = Fixture(1, config).logits(ids, 20);
  for (const int tp : {2, 4})
    EXPECT_LT(largest_difference(Fixture(tp, config).logits(ids, 20), whole), 2e-4f) << "tp " << tp;
}

TEST(Runner, ARankWhoseVocabularyRowsAreAllPaddingStillTakesPart) {
  ModelConfig config = small_config();
  config.vocab_size = 25;  // at tp 12: three rows a rank, so that ranks 9 to 11 hold padding only
  std::vector<int> ids = tokens_of(20);
  for (int& id : ids) id %= 25;
  const std::vector<float> whole = Fixture(1, config).logits(ids, 20);
  ASSERT_EQ(whole.size(), 20u * 25u);
  EXPECT_LT(largest_difference(Fixture(12, config).logits(ids, 20), whole), 2e-4f);
}

TEST(Runner, TensorsThatAreNoNeighboursGiveTheSameBits) {
  const std::vector<int> ids = tokens_of(20);
  for (const int tp : {1, 2}) EXPECT_EQ(Fixture(tp, small_config(), 256).logits(ids, 20), Fixture(tp).logits(ids, 20));
}

TEST(Runner, ChunksOfAPromptGiveWhatThePromptGives) {
  const std::vector<int> ids = tokens_of(150);
  Fixture fixture(2);
  const std::vector<float> whole = fixture.logits(ids, 100);
  for (const int chunk : {1, 7, 64, 100})
    EXPECT_LT(largest_difference(fixture.logits(ids, 100, chunk), whole), 1e-5f) << "chunks of " << chunk;
}

TEST(Runner, WantedRowsComeInChunkOrderWhateverElseIsInTheBatch) {
  Fixture fixture(2);
  const std::vector<int> a = tokens_of(70, 1), b = tokens_of(3, 2), c = tokens_of(66, 3), d = tokens_of(5, 4);
  std::vector<float> expected;
  const std::vector<std::pair<const std::vector<int>*, int>> parts = {{&a, 2}, {&b, 0}, {&c, 1}, {&d, 5}};
  for (const auto& [ids, n] : parts) {
    const std::vector<float> rows = fixture.logits(*ids, n);
    expected.insert(expected.end(), rows.begin(), rows.end());
  }
  std::vector<PageTable> tables;
  tables.reserve(parts.size());
  std::vector<SequenceChunk> batch;
  for (const auto& [ids, n] : parts) {
    tables.emplace_back(fixture.runner->pool());
    ASSERT_TRUE(tables.back().try_reserve(static_cast<int64_t>(ids->size())));
    batch.push_back({*ids, 0, &tables.back(), n});
  }
  batch.insert(batch.begin() + 1, SequenceChunk{});  // no tokens, no pages: nothing
  std::vector<float> logits;
  fixture.runner->forward(batch, logits);
  EXPECT_LT(largest_difference(logits, expected), 1e-5f);
}

TEST(Runner, ADrawingPassDrawsFromTheLogitsOfAnOrdinaryOne) {
  const std::vector<int> ids = tokens_of(30), others = tokens_of(9, 4);
  for (const int tp : {1, 2}) {
    Fixture fixture(tp);
    PageTable pages(fixture.runner->pool()), other_pages(fixture.runner->pool());
    ASSERT_TRUE(pages.try_reserve(64) && other_pages.try_reserve(64));
    const std::vector<SequenceChunk> batch{{ids, 0, &pages, 2}, {others, 0, &other_pages, 1}};
    std::vector<float> logits;
    fixture.runner->forward(batch, logits);
    std::set<int> all;
    for (uint64_t number = 0; number < 30; ++number) {
      const std::vector<Draw> draws{{{.temperature = 3, .seed = 1}, {}, number},
                                    {{.temperature = 0, .repetition_penalty = 5}, ids, number},
                                    {{.temperature = 2, .top_k = 9, .seed = 2}, {}, number}};
      std::vector<int> drawn;
      fixture.runner->forward_drawn(batch, draws, drawn);
      ASSERT_EQ(drawn.size(), 3u);
      for (size_t i = 0; i < 3; ++i) {
        std::vector<float> row(logits.begin() + static_cast<std::ptrdiff_t>(i * 61),
                               logits.begin() + static_cast<std::ptrdiff_t>((i + 1) * 61));
        EXPECT_EQ(drawn[i], draw_from(row, draws[i])) << "tp " << tp << ", row " << i << ", draw " << number;
      }
      all.insert(drawn[0]);
    }
    EXPECT_GT(all.size(), 5u);
    EXPECT_THROW(fixture.runner->forward_drawn(batch, {}, *std::make_unique<std::vector<int>>()), Error);
    const std::vector<SequenceChunk> twice{batch[0], batch[1], {others, 30, &pages, 1}};
    EXPECT_THROW(fixture.runner->forward(twice, logits), Error) << "one row would read what another has yet to store";
  }
}

TEST(Runner, AnyPageOrderGivesTheSameBits) {
  Fixture fixture(2);
  const std::vector<int> ids = tokens_of(200);
  const std::vector<float> in_order = fixture.logits(ids, 200);
  PageTable one(fixture.runner->pool()), two(fixture.runner->pool()), three(fixture.runner->pool());
  ASSERT_TRUE(one.try_reserve(64) && two.try_reserve(64) && three.try_reserve(192));
  { PageTable drop = std::move(two); }  // leaves a hole that is handed out next
  EXPECT_EQ(fixture.logits(ids, 200, 50), fixture.logits(ids, 200, 50));
  EXPECT_EQ(fixture.logits(ids, 200), in_order);
}

TEST(Runner, TheFirstTokensTouchOnlyTheirPage) {
  // 4 GB of KV pages, of which 10 tokens touch one: a runner that cleared or touched them all would take seconds and
  // the memory.
  ModelConfig config = small_config();
  const uint64_t page = kv_page_bytes(config, 1, KvKind::f32);
  Fixture fixture(1, config, 0, DType::f32, static_cast<int64_t>((uint64_t{4} << 30) / page));
  const auto resident_kb = [] {
    FILE* file = std::fopen("/proc/self/statm", "r");
    long size = 0, resident = 0;
    EXPECT_EQ(std::fscanf(file, "%ld %ld", &size, &resident), 2);
    std::fclose(file);
    return resident * 4;
  };
  const long before = resident_kb();
  fixture.logits(tokens_of(10), 1);
  EXPECT_LT(resident_kb() - before, 32 * 1024);
}

TEST(Runner, SizesAreThoseOfThePagesAndHalveWithTheElement) {
  const ModelConfig config = small_config();
  EXPECT_EQ(kv_page_bytes(config, 1, KvKind::f32),
            2u * 2u * 4u * 64u * 4u * 4u);  // layers, k and v, kv heads, slots, head_dim, bytes
  EXPECT_EQ(kv_page_bytes(config, 4, KvKind::f32), kv_page_bytes(config, 1, KvKind::f32));
  EXPECT_EQ(kv_page_bytes(config, 12, KvKind::f32),
            3 * kv_page_bytes(config, 1, KvKind::f32));  // 12 ranks repeat 4 heads
  EXPECT_EQ(kv_page_bytes(config, 1, KvKind::bf16) * 2, kv_page_bytes(config, 1, KvKind::f32));
  RunnerOptions options;
  const uint64_t at_512 = scratch_bytes(config, 1, options);
  options.max_batch_tokens = 1024;
  EXPECT_GE(scratch_bytes(config, 1, options), at_512 + 512u * (24 + 48 + 80) * 4);  // residual, heads, q k v
  EXPECT_GT(scratch_bytes(config, 4, options), scratch_bytes(config, 1, options));
}

TEST(Runner, LayersAreComputedBehindTheirGates) {
  for (const int tp : {1, 3}) {
    ModelConfig config = small_config();
    config.n_kv_heads = 3;
    const WholeModel model = random_model(config);
    const std::vector<int> ids = tokens_of(9);
    Fixture open(tp, config);
    const std::vector<float> expected = open.logits(ids, 9);

    // Weights are all wrong until just before their gate opens.
    std::vector<RankWeights> weights;
    for (int r = 0; r < tp; ++r) {
      weights.push_back(cut(model, tp, r, DType::f32, 0));
      std::memset(weights.back().arena.data(), 0x7f, weights.back().arena.size());
    }
    std::unique_ptr<Runner> runner = make_runner(config, weights, open.options);
    std::vector<float> logits;
    std::atomic<bool> done = false;
    std::thread forward([&] {
      PageTable pages(runner->pool());
      ASSERT_TRUE(pages.try_reserve(9));
      const SequenceChunk chunk{ids, 0, &pages, 9};
      runner->forward({&chunk, 1}, logits);
      done = true;
    });
    for (int gate = 0; gate < n_gates(config); ++gate) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      EXPECT_FALSE(done.load());
      for (int r = tp - 1; r >= 0; --r) {
        const RankWeights whole = cut(model, tp, r, DType::f32, 0);
        for (const ModelTensor& tensor : model_tensors(config)) {
          const Tensor& from = whole.tensors.at(tensor.name);
          const bool comes_now = tensor.gate == gate;
          if (comes_now)
            std::memcpy(weights[static_cast<size_t>(r)].tensors.at(tensor.name).data, from.data, from.size_bytes);
        }
        weights[static_cast<size_t>(r)].ready->open(gate);
      }
    }
    forward.join();
    EXPECT_EQ(logits, expected) << "tp " << tp;
  }
}

TEST(Runner, AFailedLoadOnOneRankEndsTheCallWithItsCause) {
  const WholeModel model = random_model(small_config());
  std::vector<RankWeights> weights = cut_all(model, 4, DType::f32);
  weights[2] = cut(model, 4, 2, DType::f32);
  for (int gate = 0; gate < 2; ++gate) weights[2].ready->open(gate);  // then layer 1 never comes
  Fixture fixture(4);
  const auto runner = make_runner(model.config, weights, fixture.options);
  PageTable pages(runner->pool());
  ASSERT_TRUE(pages.try_reserve(9));
  const std::vector<int> ids = tokens_of(9);
  const SequenceChunk chunk{ids, 0, &pages, 1};
  std::vector<float> logits;
  std::thread late([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    weights[2].ready->fail(std::make_exception_ptr(Error(ErrorKind::damaged, "rank-02, leaf 7")));
  });
  for (int attempt = 0; attempt < 2; ++attempt) {
    try {
      runner->forward({&chunk, 1}, logits);
      FAIL() << "a model without layer 1 answered";
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::damaged);
      EXPECT_STREQ(e.what(), "rank-02, leaf 7");
    }
  }
  late.join();
}

/// Fails once, in the third call of attend of one rank.
class FailsOnce final : public Ops {
 public:
  explicit FailsOnce(std::atomic<int>& left) : left_(left) {}
  std::string_view name() const override { return "fails once"; }
  void embed(std::span<const int> ids, const Weight& table, int64_t first_row, Matrix<float> out) override {
    ops_.embed(ids, table, first_row, out);
  }
  void rms_norm(Matrix<const float> x, const Weight& weight, float eps, Matrix<float> out) override {
    ops_.rms_norm(x, weight, eps, out);
  }
  void matmul(Matrix<const float> x, const Weight& w, const Weight* bias, Matrix<float> out) override {
    ops_.matmul(x, w, bias, out);
  }
  void matmul_add(Matrix<const float> x, const Weight& w, const Weight* bias, Matrix<float> out) override {
    ops_.matmul_add(x, w, bias, out);
  }
  void gate_up_silu(Matrix<const float> x, const Weight& w, const Weight* bias, Matrix<float> out) override {
    ops_.gate_up_silu(x, w, bias, out);
  }
  void rope_and_store(Matrix<float> qkv, int n_heads, const Weight* q_norm, const Weight* k_norm, float eps,
                      std::span<const double> frequencies, std::span<const AttentionSpan> spans,
                      const KvLayer& kv) override {
    ops_.rope_and_store(qkv, n_heads, q_norm, k_norm, eps, frequencies, spans, kv);
  }
  void attend(Matrix<const float> q, int n_heads, std::span<const AttentionSpan> spans, const KvLayer& kv,
              Matrix<float> out) override {
    if (--left_ == 0) throw Error(ErrorKind::out_of_memory, "no room for scores");
    ops_.attend(q, n_heads, spans, kv, out);
  }

 private:
  std::atomic<int>& left_;
  ReferenceOps ops_;
};

TEST(Runner, AFailureInOneRankEndsAllAndTheNextCallWorks) {
  for (const int tp : {1, 4}) {
    std::atomic<int> left = 2 * tp - 1;  // in the second layer, or thereabouts
    Fixture fixture(tp);
    const std::vector<int> ids = tokens_of(9);
    const std::vector<float> expected = fixture.logits(ids, 9);
    fixture.options.make_ops = [&left](ThreadPool&) { return std::make_unique<FailsOnce>(left); };
    fixture.runner = make_runner(fixture.model.config, fixture.weights, fixture.options);
    EXPECT_THROW(fixture.logits(ids, 9), Error);
    EXPECT_EQ(fixture.logits(ids, 9), expected);
  }
}

template <class Change>
void expect_refused(ErrorKind kind, const Change& change) {
  Fixture fixture(1);
  PageTable pages(fixture.runner->pool());
  ASSERT_TRUE(pages.try_reserve(64));
  std::vector<int> ids = tokens_of(4);
  SequenceChunk chunk{ids, 0, &pages, 1};
  change(ids, chunk);
  std::vector<float> logits;
  try {
    fixture.runner->forward({&chunk, 1}, logits);
    FAIL() << "not refused";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), kind) << e.what();
  }
}

TEST(Runner, ABatchThatCannotBeComputedIsRefusedBeforeAnyWork) {
  expect_refused(ErrorKind::bad_input, [](std::vector<int>& ids, SequenceChunk&) { ids[2] = 61; });
  expect_refused(ErrorKind::bad_input, [](std::vector<int>& ids, SequenceChunk&) { ids[2] = -1; });
  expect_refused(ErrorKind::bug, [](std::vector<int>&, SequenceChunk& chunk) { chunk.position = 61; });
  expect_refused(ErrorKind::bug, [](std::vector<int>&, SequenceChunk& chunk) { chunk.position = -1; });
  expect_refused(ErrorKind::bug, [](std::vector<int>&, SequenceChunk& chunk) { chunk.pages = nullptr; });
  expect_refused(ErrorKind::bug, [](std::vector<int>&, SequenceChunk& chunk) { chunk.n_logits = 5; });
  expect_refused(ErrorKind::bug, [](std::vector<int>& ids, SequenceChunk& chunk) {
    static const std::vector<int> many = tokens_of(513);
    chunk.tokens = many;
    static_cast<void>(ids);
  });
}

TEST(Runner, WeightsThatAreNotTheModelsAreRefused) {
  Fixture fixture(2);
  std::vector<RankWeights> weights = cut_all(fixture.model, 2, DType::f32);
  std::swap(weights[0], weights[1]);
  EXPECT_THROW(make_runner(fixture.model.config, weights, fixture.options), Error);
  std::swap(weights[0], weights[1]);
  weights[1].tensors.at("model.layers.1.mlp.up_proj.weight").shape[0] += 1;
  EXPECT_THROW(make_runner(fixture.model.config, weights, fixture.options), Error);
  weights[1].tensors.at("model.layers.1.mlp.up_proj.weight").shape[0] -= 1;
  weights[1].tensors.erase("model.layers.0.self_attn.q_norm.weight");
  EXPECT_THROW(make_runner(fixture.model.config, weights, fixture.options), Error);
}

}  // namespace
}  // namespace firstlight

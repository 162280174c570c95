// SPDX-License-Identifier: Apache-2.0
// The forward pass over a cache of TurboQuant codes: close to numbers, the same for every chunking, refused by name.
#include <gtest/gtest.h>

#include "firstlight/base/error.h"
#include "firstlight/model/runner_testing.h"

namespace firstlight {
namespace {

/// A model whose heads codes come in, with the CPU's own arithmetic.
struct CodeFixture : Fixture {
  explicit CodeFixture(KvKind kind, int tp = 1) : Fixture(tp, small_code_config()) {
    options.kv = kind;
    options.n_exact_pages = is_compressed(kind) ? exact_pages_for(1, options.max_batch_tokens, options.n_pages) : 0;
    options.make_ops = nullptr;
    runner = make_runner(model.config, weights, options);
  }
  std::vector<float> logits(const std::vector<int>& ids, int n_logits, int chunk, bool fresh_exactly = false) {
    PageTable pages(runner->pool(), runner->exact_pool());
    EXPECT_TRUE(pages.try_reserve(static_cast<int64_t>(ids.size())));
    std::vector<float> all, step;
    const int n = static_cast<int>(ids.size());
    for (int at = 0; at < n; at += chunk) {
      const int size = std::min(chunk, n - at), wanted = std::clamp(at + size - (n - n_logits), 0, size);
      const SequenceChunk piece{std::span(ids).subspan(static_cast<size_t>(at), static_cast<size_t>(size)), at, &pages,
                                wanted, fresh_exactly};
      runner->forward({&piece, 1}, step);
      pages.release_exact(at + size);
      all.insert(all.end(), step.begin(), step.end());
    }
    return all;
  }
};

TEST(RunnerCodes, GiveNearlyTheLogitsOfNumbersAndFewerBitsAreFarther) {
  const std::vector<int> ids = tokens_of(480);
  const std::vector<float> exact = CodeFixture(KvKind::f32).logits(ids, 100, 480);
  float last = 0;
  for (const KvKind kind : {KvKind::tq8, KvKind::tq4, KvKind::k3v2}) {
    const float difference = largest_difference(CodeFixture(kind).logits(ids, 100, 480), exact);
    EXPECT_GT(difference, last) << to_string(kind);
    last = difference;
  }
  EXPECT_LT(largest_difference(CodeFixture(KvKind::tq8).logits(ids, 100, 480), exact), 0.1f);
}

/// Fewer than 8 rows take another class of products; within a class a row's bits are its own, wherever chunks begin.
TEST(RunnerCodes, GiveTheSameBitsForEveryChunking) {
  const std::vector<int> ids = tokens_of(448);
  CodeFixture fixture(KvKind::tq4);
  const std::vector<float> whole = fixture.logits(ids, 8, 448);
  for (const int chunk : {44, 64, 100, 110}) EXPECT_EQ(fixture.logits(ids, 8, chunk), whole) << "chunks of " << chunk;
  EXPECT_LT(largest_difference(fixture.logits(ids, 8, 1), whole), 0.01f);
}

/// All that the rows of a first chunk see is fresh.
TEST(RunnerCodes, AreNotReadByAChunkThatReadsItselfExactly) {
  const std::vector<int> ids = tokens_of(448);
  CodeFixture fixture(KvKind::k3v2);
  const std::vector<float> numbers = CodeFixture(KvKind::bf16).logits(ids, 100, 448);
  const std::vector<float> fast = fixture.logits(ids, 100, 448, true), pieces = fixture.logits(ids, 100, 200, true);
  EXPECT_LT(largest_difference(fast, numbers), 1e-3f);
  EXPECT_GT(largest_difference(pieces, numbers), 1e-2f);  // the first piece's codes
}

TEST(RunnerCodes, AreTheSameAtEverySplit) {
  const std::vector<int> ids = tokens_of(400);
  const std::vector<float> whole = CodeFixture(KvKind::tq8).logits(ids, 50, 400);
  for (const int tp : {2, 4})
    EXPECT_LT(largest_difference(CodeFixture(KvKind::tq8, tp).logits(ids, 50, 400), whole), 0.02f) << "tp " << tp;
}

TEST(RunnerCodes, RefuseOtherHeadsAndTooFewExactPages) {
  Fixture fixture(1);  // head_dim 4
  fixture.options.kv = KvKind::tq4;
  fixture.options.n_exact_pages = 100;
  EXPECT_THROW(make_runner(fixture.model.config, fixture.weights, fixture.options), Error);
  CodeFixture codes(KvKind::tq4);
  codes.options.n_exact_pages = 3;
  EXPECT_THROW(make_runner(codes.model.config, codes.weights, codes.options), Error);
  PageTable without(codes.runner->pool());
  ASSERT_TRUE(without.try_reserve(3));
  const std::vector<int> ids = tokens_of(3);
  const SequenceChunk chunk{ids, 0, &without, 1};
  std::vector<float> logits;
  EXPECT_THROW(codes.runner->forward({&chunk, 1}, logits), Error);
}

}  // namespace
}  // namespace firstlight

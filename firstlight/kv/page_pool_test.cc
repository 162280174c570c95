// SPDX-License-Identifier: Apache-2.0
// The page pool against its contract: no page is ever in two hands, none is lost.
#include "firstlight/kv/page_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "firstlight/base/error.h"

namespace firstlight {
namespace {

TEST(PagePool, HandsOutEveryPageOnceAndThenNone) {
  PagePool pool(5);
  std::set<int32_t> seen;
  for (int i = 0; i < 5; ++i) seen.insert(pool.try_take().value());
  EXPECT_EQ(seen, (std::set<int32_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(pool.n_free(), 0);
  EXPECT_FALSE(pool.try_take().has_value());
}

TEST(PagePool, AFreedPageIsTheNextOneHandedOut) {
  PagePool pool(4);
  (void)pool.try_take();
  const int32_t page = pool.try_take().value();
  (void)pool.try_take();
  pool.give_back(page);
  EXPECT_EQ(pool.try_take(), page);
}

TEST(PagePool, RefusesAPageThatIsNotTaken) {
  PagePool pool(2);
  const int32_t page = pool.try_take().value();
  pool.give_back(page);
  for (const int32_t wrong : {page, -1, 2, std::numeric_limits<int32_t>::max()}) {
    try {
      pool.give_back(wrong);
      ADD_FAILURE() << "page " << wrong << " was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::bug);
    }
  }
  EXPECT_EQ(pool.n_free(), 2);
}

TEST(PagePool, RefusesANegativeOrAnUnnumberableSize) {
  EXPECT_THROW(PagePool(-1), Error);
  EXPECT_THROW(PagePool(int64_t{1} << 31), Error);
  EXPECT_EQ(PagePool(0).n_free(), 0);
}

TEST(PageTable, GrowsByWholePagesOnly) {
  PagePool pool(4);
  PageTable table(pool);
  EXPECT_TRUE(table.try_reserve(0));
  EXPECT_EQ(table.pages().size(), 0u);
  EXPECT_TRUE(table.try_reserve(1));
  EXPECT_EQ(table.pages().size(), 1u);
  EXPECT_TRUE(table.try_reserve(kPageTokens));
  EXPECT_EQ(table.pages().size(), 1u);
  EXPECT_TRUE(table.try_reserve(kPageTokens + 1));
  EXPECT_EQ(table.pages().size(), 2u);
  EXPECT_TRUE(table.try_reserve(3)) << "a smaller reservation keeps what is there";
  EXPECT_EQ(table.capacity(), 2 * kPageTokens);
}

TEST(PageTable, IsUnchangedWhenThePoolHasTooFew) {
  PagePool pool(3);
  PageTable first(pool), second(pool);
  ASSERT_TRUE(first.try_reserve(2 * kPageTokens));
  EXPECT_FALSE(second.try_reserve(kPageTokens + 1));
  EXPECT_FALSE(second.try_reserve(std::numeric_limits<int64_t>::max()));
  EXPECT_EQ(second.pages().size(), 0u);
  EXPECT_EQ(pool.n_free(), 1);
}

TEST(PageTable, ReturnsItsPagesWhenItDiesAndNotWhenItIsMoved) {
  PagePool pool(3);
  {
    PageTable table(pool);
    ASSERT_TRUE(table.try_reserve(2 * kPageTokens));
    PageTable moved(std::move(table));
    EXPECT_EQ(moved.pages().size(), 2u);
    EXPECT_EQ(pool.n_free(), 1);
  }
  EXPECT_EQ(pool.n_free(), 3);
}

TEST(PageTable, TablesNeverShareAPageInARandomRun) {
  PagePool pool(37);
  std::mt19937 random(7);
  std::vector<std::unique_ptr<PageTable>> tables(9);
  for (int step = 0; step < 2000; ++step) {
    auto& table = tables[random() % tables.size()];
    if (!table) table = std::make_unique<PageTable>(pool);
    if (random() % 4 == 0)
      table.reset();
    else
      table->try_reserve(static_cast<int64_t>(random() % 700));
    std::set<int32_t> used;
    size_t n_used = 0;
    for (const auto& each : tables) {
      if (!each) continue;
      n_used += each->pages().size();
      used.insert(each->pages().begin(), each->pages().end());
    }
    ASSERT_EQ(used.size(), n_used) << "step " << step;
    ASSERT_EQ(pool.n_free() + static_cast<int64_t>(n_used), pool.n_pages()) << "step " << step;
  }
}

int64_t count_exact(const PageTable& table) {
  return std::count_if(table.exact().begin(), table.exact().end(), [](int32_t page) { return page >= 0; });
}

TEST(PageTable, HasNoExactPagesWithoutAPoolOfThem) {
  PagePool pool(3);
  PageTable table(pool);
  ASSERT_TRUE(table.try_reserve(100));
  table.hold_exact(0, 100);
  table.release_exact(100);
  EXPECT_TRUE(table.exact().empty());
}

/// Whatever the chunks: a token's reads are the first page, its own and the two before.
TEST(PageTable, HoldsTheExactPagesThatEachPassReadsAndWrites) {
  for (const int64_t chunk : {1, 7, 64, 65, 200, 512}) {
    PagePool pool(40), exact(exact_pages_for(1, chunk, 32));
    {
      PageTable table(pool, &exact);
      ASSERT_TRUE(table.try_reserve(2000));
      for (int64_t begin = 0; begin < 2000; begin += chunk) {
        const int64_t end = std::min<int64_t>(2000, begin + chunk);
        table.hold_exact(begin, end);
        std::set<int32_t> numbers;
        for (int64_t page = 0; page <= (end - 1) / kPageTokens; ++page) {
          const bool read = page == 0 || page >= begin / kPageTokens - 2;
          ASSERT_EQ(table.exact()[static_cast<size_t>(page)] >= 0, read) << "page " << page << " at " << begin;
          if (read) numbers.insert(table.exact()[static_cast<size_t>(page)]);
        }
        ASSERT_EQ(static_cast<int64_t>(numbers.size()), count_exact(table)) << "two pages share an exact one";
        table.hold_exact(begin, end);  // the same pass again
        table.release_exact(end);
        ASSERT_LE(count_exact(table), 4);
      }
    }
    EXPECT_EQ(exact.n_free(), exact.n_pages());
  }
}

TEST(PageTable, NeedsNoMoreExactPagesThanPages) {
  for (int64_t n_tokens = 1; n_tokens < 1500; n_tokens += 61) {
    const int64_t n_pages = (n_tokens + kPageTokens - 1) / kPageTokens;
    for (const int64_t chunk : {1, 70, 512, 4096}) {
      PagePool pool(n_pages), exact(exact_pages_for(1, chunk, n_pages));
      ASSERT_LE(exact.n_pages(), n_pages);
      PageTable table(pool, &exact);
      ASSERT_TRUE(table.try_reserve(n_tokens));
      for (int64_t begin = 0; begin < n_tokens; begin += chunk) {
        ASSERT_NO_THROW(table.hold_exact(begin, std::min(n_tokens, begin + chunk)));
        table.release_exact(std::min(n_tokens, begin + chunk));
      }
    }
  }
}

TEST(PageTable, AnExactPageThatWasGivenBackIsNotReadAgain) {
  PagePool pool(20), exact(20);
  PageTable table(pool, &exact);
  ASSERT_TRUE(table.try_reserve(1000));
  table.hold_exact(0, 640);
  table.release_exact(640);
  try {
    table.hold_exact(500, 501);  // reads page 5: tokens 320 to 383
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::bug);
  }
  EXPECT_NO_THROW(table.hold_exact(640, 641));
}

TEST(PageTable, SaysWhenExactPagesRunOut) {
  PagePool pool(20), exact(3);
  PageTable table(pool, &exact);
  ASSERT_TRUE(table.try_reserve(1000));
  try {
    table.hold_exact(0, 4 * kPageTokens);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::out_of_memory);
  }
}

/// Sequences in random chunks, several in a pass, as the engine's budget allows: the promised pool is always enough.
TEST(PageTable, TheExactPoolOfThePromisedSizeNeverRunsDry) {
  constexpr int64_t kSequences = 5, kBudget = 300;
  PagePool pool(1000), exact(exact_pages_for(kSequences, kBudget, 1000));
  std::mt19937 random(3);
  for (int run = 0; run < 30; ++run) {
    std::vector<PageTable> tables;
    std::vector<int64_t> cached(kSequences, 0);
    for (int64_t i = 0; i < kSequences; ++i) {
      tables.emplace_back(pool, &exact);
      ASSERT_TRUE(tables.back().try_reserve(6000));
    }
    for (int pass = 0; pass < 60; ++pass) {
      int64_t budget = kBudget;
      std::vector<int64_t> n(kSequences, 0);
      for (size_t i = 0; i < tables.size(); ++i) {
        const int64_t wanted = random() % 3 == 0 ? 1 : random() % 3 == 0 ? 2 : static_cast<int64_t>(random() % 300);
        n[i] = std::min({wanted, budget, 6000 - cached[i]});
        if (n[i] == 0) continue;
        budget -= n[i];
        ASSERT_NO_THROW(tables[i].hold_exact(cached[i], cached[i] + n[i]));
      }
      for (size_t i = 0; i < tables.size(); ++i) tables[i].release_exact(cached[i] += n[i]);
    }
  }
}

TEST(KvKind, NamesAreReadBackAndOthersRefused) {
  for (const KvKind kind : kKvKinds) EXPECT_EQ(kv_kind_from(to_string(kind)), kind);
  EXPECT_FALSE(kv_kind_from("fp8").has_value());
  EXPECT_FALSE(kv_kind_from("").has_value());
  EXPECT_EQ(kv_element_bytes(KvKind::f32), 4);
  EXPECT_EQ(kv_element_bytes(KvKind::bf16), 2);
}

TEST(KvKind, PagesHaveTheSizesOfTheirPresets) {
  // Bytes of one key and one value at head_dim 64 and 128, from the format's table (codes, and 2 bytes of scale each).
  const std::tuple<KvKind, int, int> sizes[] = {
      {KvKind::f32, 512, 1024}, {KvKind::bf16, 256, 512}, {KvKind::tq8, 132, 260}, {KvKind::k8v4, 100, 196},
      {KvKind::tq4, 68, 132},   {KvKind::k4v3, 60, 116},  {KvKind::tq3, 52, 100},  {KvKind::k3v2, 44, 84}};
  for (const auto& [kind, at64, at128] : sizes) {
    EXPECT_EQ(kv_page_bytes(kind, 3, 64), 3u * 64 * static_cast<unsigned>(at64)) << to_string(kind);
    EXPECT_EQ(kv_page_bytes(kind, 8, 128), 8u * 64 * static_cast<unsigned>(at128)) << to_string(kind);
  }
  EXPECT_EQ(kv_page_bytes(KvKind::f32, 1, 80), 2u * 64 * 80 * 4);
  EXPECT_THROW(kv_page_bytes(KvKind::tq4, 1, 80), Error);
}

/// The fifth bound of the format: at 4 bits and d = 128 a sequence of 32K tokens takes 3.7 times less than bf16, one of
/// 128K 3.8 times less, the exact pages counted.
TEST(KvKind, FourBitsHoldThePromisedContext) {
  const auto ratio = [](int64_t tokens) {
    const auto bf16 = static_cast<double>(kv_page_bytes(KvKind::bf16, 8, 128));
    const auto codes = static_cast<double>(kv_page_bytes(KvKind::tq4, 8, 128));
    const auto pages = static_cast<double>(tokens / kPageTokens);
    return pages * bf16 / (pages * codes + (kExactTail + 1) * bf16);
  };
  EXPECT_GE(ratio(32 * 1024), 3.7);
  EXPECT_GE(ratio(128 * 1024), 3.8);
}

}  // namespace
}  // namespace firstlight

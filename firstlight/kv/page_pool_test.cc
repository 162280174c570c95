// SPDX-License-Identifier: Apache-2.0
// The page pool against its contract: no page is ever in two hands, none is lost.
#include "firstlight/kv/page_pool.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <set>
#include <utility>

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

TEST(KvKind, NamesAreReadBackAndOthersRefused) {
  for (const KvKind kind : {KvKind::f32, KvKind::bf16}) EXPECT_EQ(kv_kind_from(to_string(kind)), kind);
  EXPECT_FALSE(kv_kind_from("fp8").has_value());
  EXPECT_FALSE(kv_kind_from("").has_value());
  EXPECT_EQ(kv_element_bytes(KvKind::f32), 4);
  EXPECT_EQ(kv_element_bytes(KvKind::bf16), 2);
}

}  // namespace
}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// Pages with several holders, kept pages and the prefix cache, against models of what they are to do.
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <random>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/kv/page_pool.h"
#include "firstlight/kv/prefix_cache.h"

namespace firstlight {
namespace {

TEST(SharedPages, AKeptPageIsTakenLastAndTheLongestIdleFirst) {
  PagePool pool(3);
  const int32_t a = pool.try_take().value(), b = pool.try_take().value();
  pool.keep(a);
  pool.keep(b);
  pool.give_back(b);
  pool.give_back(a);
  EXPECT_EQ(pool.n_free(), 3);
  std::vector<int32_t> evicted;
  pool.on_evict([&](int32_t page) { evicted.push_back(page); });
  const int32_t c = pool.try_take().value();
  EXPECT_TRUE(evicted.empty()) << "there was a free one";
  EXPECT_EQ(pool.try_take(), b);
  EXPECT_FALSE(pool.is_kept(b));
  pool.share(a);  // held again: it is not taken
  EXPECT_FALSE(pool.try_take().has_value());
  EXPECT_EQ(evicted, std::vector<int32_t>{b});
  pool.give_back(b);
  pool.give_back(c);
  EXPECT_EQ(pool.n_free(), 2);
}

TEST(SharedPages, RefusesToShareOrKeepWhatNobodyHolds) {
  PagePool pool(2);
  for (const int32_t page : {0, -1, 2}) {
    EXPECT_THROW(pool.share(page), Error);
    EXPECT_THROW(pool.keep(page), Error);
  }
}

/// The pool against a list of what each page is.
TEST(SharedPages, ThePoolDoesAsItsModelInARandomRun) {
  constexpr int kPages = 13;
  PagePool pool(kPages);
  std::vector<int> holders(kPages, 0);
  std::vector<bool> kept(kPages, false);
  std::deque<int32_t> idle;  // kept, held by nobody
  std::vector<int32_t> evicted, expected;
  pool.on_evict([&](int32_t page) { evicted.push_back(page); });
  std::mt19937 random(5);
  for (int step = 0; step < 50'000; ++step) {
    const auto page = static_cast<int32_t>(random() % kPages);
    const auto at = static_cast<size_t>(page);
    const bool is_idle = kept[at] && holders[at] == 0;
    switch (random() % 4) {
      case 0: {
        const auto n_free = std::count(holders.begin(), holders.end(), 0) - static_cast<std::ptrdiff_t>(idle.size());
        const auto taken = pool.try_take();
        ASSERT_EQ(taken.has_value(), n_free > 0 || !idle.empty());
        if (!taken) break;
        ASSERT_EQ(holders[static_cast<size_t>(*taken)], 0);
        if (n_free == 0) {
          ASSERT_EQ(*taken, idle.front());
          expected.push_back(*taken);
          idle.pop_front();
          kept[static_cast<size_t>(*taken)] = false;
        } else {
          ASSERT_FALSE(kept[static_cast<size_t>(*taken)]);
        }
        holders[static_cast<size_t>(*taken)] = 1;
        break;
      }
      case 1:
        if (holders[at] == 0 && !is_idle) break;
        pool.share(page);
        if (is_idle) idle.erase(std::find(idle.begin(), idle.end(), page));
        ++holders[at];
        break;
      case 2:
        if (holders[at] == 0) break;
        pool.give_back(page);
        if (--holders[at] == 0 && kept[at]) idle.push_back(page);
        break;
      case 3:
        if (holders[at] == 0 || random() % 2 == 0) break;
        pool.keep(page);
        kept[at] = true;
        break;
    }
    ASSERT_EQ(pool.n_free(), std::count(holders.begin(), holders.end(), 0));
    ASSERT_EQ(pool.n_holders(page), holders[at]);
    ASSERT_EQ(pool.is_kept(page), kept[at]);
  }
  EXPECT_EQ(evicted, expected);
  EXPECT_GT(evicted.size(), 100u);
}

/// A cache whose pages hold their tokens, and sequences over it: what a sequence reads must be its own text, whoever
/// forks, rolls back, ends, or takes a page that was kept.
class Texts {
 public:
  Texts(int64_t n_pages, int64_t n_exact, bool share)
      : pool(n_pages), exact(n_exact), slots(cells(n_pages), -1), exact_slots(cells(n_exact), -1) {
    if (share) cache = std::make_unique<PrefixCache>(pool, exact_pool());
  }
  struct Sequence {
    std::vector<int> tokens;
    int64_t n_prompt = 0;
    std::unique_ptr<PageTable> table;
    int64_t n_cached = 0;
  };
  PagePool* exact_pool() { return exact.n_pages() > 0 ? &exact : nullptr; }

  Sequence begin(std::vector<int> prompt) {
    Sequence s{std::move(prompt), 0, std::make_unique<PageTable>(pool, exact_pool()), 0};
    s.n_prompt = static_cast<int64_t>(s.tokens.size());
    if (cache) s.n_cached = cache->match(s.tokens, (s.n_prompt - 1) / kPageTokens, *s.table);
    n_matched += s.n_cached;
    return s;
  }
  /// Writes the next n tokens; false if there are no pages.
  bool write(Sequence& s, int64_t n) {
    const PageTable::Copies copies{[&](int32_t from, int32_t to) { copy(slots, from, to); },
                                   [&](int32_t from, int32_t to) { copy(exact_slots, from, to); }};
    if (!s.table->try_reserve(s.n_cached + n) || !s.table->try_own(s.n_cached, copies)) return false;
    s.table->hold_exact(s.n_cached, s.n_cached + n);
    for (int64_t t = s.n_cached; t < s.n_cached + n; ++t) {
      const int32_t page = s.table->pages()[static_cast<size_t>(t / kPageTokens)];
      EXPECT_TRUE(pool.n_holders(page) == 1 && !pool.is_kept(page)) << "a page of others is written";
      slots[cell(page, t)] = s.tokens[static_cast<size_t>(t)];
      if (exact_pool() != nullptr)
        exact_slots[cell(s.table->exact()[static_cast<size_t>(t / kPageTokens)], t)] = s.tokens[static_cast<size_t>(t)];
      check(s, t);
    }
    s.n_cached += n;
    if (cache) cache->insert(s.tokens, std::min(s.n_cached, s.n_prompt) / kPageTokens, *s.table);
    s.table->release_exact(s.n_cached);
    return true;
  }
  /// What the query at `last` reads.
  void check(const Sequence& s, int64_t last) const {
    for (int64_t t = 0; t <= last; ++t) {
      const auto page = static_cast<size_t>(t / kPageTokens);
      ASSERT_EQ(slots[cell(s.table->pages()[page], t)], s.tokens[static_cast<size_t>(t)])
          << "token " << t << " at " << last;
      if (exact.n_pages() == 0 || !is_exact(t / kPageTokens, last / kPageTokens)) continue;
      ASSERT_GE(s.table->exact()[page], 0);
      ASSERT_EQ(exact_slots[cell(s.table->exact()[page], t)], s.tokens[static_cast<size_t>(t)]) << "exact " << t;
    }
  }

  PagePool pool, exact;
  std::vector<int> slots, exact_slots;
  std::unique_ptr<PrefixCache> cache;
  int64_t n_matched = 0;

 private:
  static size_t cells(int64_t n) { return static_cast<size_t>(n) * kPageTokens; }
  static size_t cell(int32_t page, int64_t t) {
    return static_cast<size_t>(page) * kPageTokens + static_cast<size_t>(t % kPageTokens);
  }
  static void copy(std::vector<int>& cells, int32_t from, int32_t to) {
    std::copy_n(cells.begin() + from * kPageTokens, kPageTokens, cells.begin() + to * kPageTokens);
  }
};

/// Of few words, so that beginnings are common: text i of a kind differs from its kin behind a random place only.
std::vector<int> text_of(std::mt19937& random) {
  const int kind = static_cast<int>(random() % 3), n = 1 + static_cast<int>(random() % 500),
            own = static_cast<int>(random() % 600);
  std::vector<int> tokens;
  for (int i = 0; i < n; ++i) tokens.push_back(i < own ? i * 3 + kind * 1000 : static_cast<int>(random() % 2));
  return tokens;
}

class SharedTexts : public testing::TestWithParam<std::tuple<int, int>> {};

TEST_P(SharedTexts, EverySequenceReadsItsOwnText) {
  const auto [n_pages, n_exact] = GetParam();
  Texts texts(n_pages, n_exact, true);
  std::mt19937 random(static_cast<unsigned>(n_pages + n_exact));
  std::vector<Texts::Sequence> sequences;
  int n_forks = 0, n_rollbacks = 0, n_refused = 0;
  for (int step = 0; step < 2000; ++step) {
    const size_t at = sequences.empty() ? 0 : random() % sequences.size();
    switch (random() % 8) {
      case 0:
        if (sequences.size() < 6) sequences.push_back(texts.begin(text_of(random)));
        break;
      case 1:
        if (!sequences.empty()) sequences.erase(sequences.begin() + static_cast<std::ptrdiff_t>(at));
        break;
      case 2: {
        if (sequences.empty() || sequences.size() >= 6 || sequences[at].n_cached == 0) break;
        const int64_t n = 1 + static_cast<int64_t>(random()) % sequences[at].n_cached;
        Texts::Sequence& from = sequences[at];
        if (!from.table->has_exact_before(n)) break;
        Texts::Sequence fork{{from.tokens.begin(), from.tokens.begin() + n},
                             std::min(n, from.n_prompt),
                             std::make_unique<PageTable>(from.table->fork(n)),
                             n};
        for (int i = 0; i < 70; ++i) fork.tokens.push_back(static_cast<int>(random() % 50));
        sequences.push_back(std::move(fork));
        ++n_forks;
        break;
      }
      case 3: {
        if (sequences.empty() || sequences[at].n_cached == 0) break;
        Texts::Sequence& s = sequences[at];
        const int64_t n = s.n_cached - std::min<int64_t>(s.n_cached, static_cast<int64_t>(random() % 90));
        if (!s.table->try_truncate(n)) {
          ++n_refused;
          break;
        }
        s.n_cached = n;
        for (auto t = static_cast<size_t>(n); t < s.tokens.size(); ++t) s.tokens[t] = static_cast<int>(random() % 50);
        ++n_rollbacks;
        break;
      }
      default: {
        if (sequences.empty()) break;
        Texts::Sequence& s = sequences[at];
        const int64_t left = static_cast<int64_t>(s.tokens.size()) - s.n_cached;
        if (left > 0 && !texts.write(s, 1 + static_cast<int64_t>(random()) % std::min<int64_t>(left, 200)))
          sequences.erase(sequences.begin() + static_cast<std::ptrdiff_t>(at));
      }
    }
    if (HasFatalFailure() || HasFailure()) return;
    if (step % 5 != 0) continue;
    for (const auto& s : sequences) {
      if (s.n_cached > 0 && s.table->has_exact_before(s.n_cached - 1)) texts.check(s, s.n_cached - 1);
    }
  }
  sequences.clear();
  EXPECT_EQ(texts.pool.n_free(), n_pages);
  EXPECT_EQ(texts.exact.n_free(), n_exact);
  EXPECT_GT(n_forks, 25);
  EXPECT_GT(n_rollbacks, 25);
  EXPECT_GT(texts.n_matched, 1000);
  if (n_exact > 0) {
    EXPECT_GT(n_refused, 0);
  }
}

// 6 sequences of 5 exact pages and a pass of 200 tokens: 34, and 20 or 60 that may be kept; few pages, so that kept
// ones go; many, so that they stay.
INSTANTIATE_TEST_SUITE_P(Pools, SharedTexts,
                         testing::Combine(testing::Values(12, 30, 200), testing::Values(0, 54, 94)));

TEST(PrefixCache, FindsTheLongestBeginningAndNoOther) {
  Texts texts(40, 0, true);
  std::vector<int> text;
  for (int i = 0; i < 300; ++i) text.push_back(i);
  {
    auto s = texts.begin(text);
    ASSERT_TRUE(texts.write(s, 300));
  }
  EXPECT_EQ(texts.cache->n_pages(), 4);
  EXPECT_EQ(texts.pool.n_free(), 40);
  const auto matched = [&](std::vector<int> tokens) { return texts.begin(std::move(tokens)).n_cached; };
  EXPECT_EQ(matched(text), 256);
  EXPECT_EQ(matched({text.begin(), text.begin() + 256}), 192) << "one token at least is left to compute";
  EXPECT_EQ(matched({text.begin(), text.begin() + 257}), 256);
  EXPECT_EQ(matched({text.begin() + 64, text.end()}), 0) << "the same page behind another beginning";
  std::vector<int> other = text;
  other[130] = 7;
  EXPECT_EQ(matched(other), 128);
}

TEST(PrefixCache, TheEndOfATextGoesBeforeItsBeginning) {
  Texts texts(6, 0, true);
  const std::vector<int> text(300, 1);
  {
    auto s = texts.begin(text);
    ASSERT_TRUE(texts.write(s, 300));
  }
  for (const auto& [n_taken, left] : {std::pair{2, 256}, {3, 192}, {5, 64}, {6, 0}}) {
    std::vector<int32_t> taken;
    for (int i = 0; i < n_taken; ++i) taken.push_back(texts.pool.try_take().value());
    for (const int32_t page : taken) texts.pool.give_back(page);
    EXPECT_EQ(texts.cache->n_pages() * kPageTokens, left) << n_taken;
  }
}

TEST(PrefixCache, BesideCodesAPrefixEndsWhereItsExactPagesAre) {
  Texts texts(40, 5, true);
  std::vector<int> text;
  for (int i = 0; i < 500; ++i) text.push_back(i);
  {
    auto s = texts.begin(text);
    for (int i = 0; i < 10; ++i) ASSERT_TRUE(texts.write(s, 50));
  }
  // 7 full pages. In bf16 there are pages 0, 4, 5, 6 and the open one.
  auto s = texts.begin(text);
  EXPECT_EQ(s.n_cached, 448);
  const auto matched = [&](int n) { return texts.begin({text.begin(), text.begin() + n}).n_cached; };
  EXPECT_EQ(matched(400), 384);
  EXPECT_EQ(matched(350), 64) << "pages 1 to 3 in bf16 are gone";
  ASSERT_TRUE(texts.write(s, 52));
}

}  // namespace
}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// The exchange between peers, run by threads of the host: sums to the bit, over many exchanges of changing size and
// kind; under ThreadSanitizer also whether what one rank writes is ordered before what another reads.
#include <gtest/gtest.h>

#include <atomic>
#include <barrier>
#include <cstring>
#include <thread>
#include <vector>

#include "firstlight/comm/peer_exchange-inl.h"

namespace firstlight::peer {
namespace {

/// A block of one thread.
struct OnHost {
  int block_at, blocks;
  mutable uint32_t dice;
  mutable int lags = 0;
  /// Now and then lets the others run far ahead, so that it shows if they must not.
  void lag() const {
    dice = dice * 1664525u + 1013904223u;
    if (dice >> 28 != 0 || lags == 500) return;
    ++lags;
    for (int i = 0; i < 40; ++i) std::this_thread::yield();
  }
  int thread() const { return 0; }
  int n_threads() const { return 1; }
  int block() const { return block_at; }
  int n_blocks() const { return blocks; }
  void sync() const {}
  bool all(bool mine) const { return mine; }
  Words load(Words* from) const {
    lag();
    Words x{};
    for (int k = 0; k < 4; ++k) x.word[k] = std::atomic_ref(from->word[k]).load(std::memory_order_relaxed);
    return x;
  }
  void store(Words* to, const Words& x) const {
    for (const int k : {2, 0, 3, 1}) std::atomic_ref(to->word[k]).store(x.word[k], std::memory_order_relaxed);
  }
  Words read(const float* data, int64_t i, int64_t n) const {
    lag();
    return vector_of(data, i, n);
  }
  void write(float* data, int64_t i, int64_t n, const Words& x) const { set_vector(data, i, n, x); }
  void signal(uint32_t* to, uint32_t value) const { std::atomic_ref(*to).store(value, std::memory_order_release); }
  uint32_t signalled(uint32_t* from) const { return std::atomic_ref(*from).load(std::memory_order_acquire); }
  uint32_t arrive(uint32_t* at) const { return std::atomic_ref(*at).fetch_add(1, std::memory_order_acq_rel); }
  bool given_up(const Call& call, uint32_t) const {
    std::this_thread::yield();
    return std::atomic_ref(*call.stop).load(std::memory_order_relaxed) != 0;
  }
};

enum class Kind { by_inbox, in_place };

struct Exchange {
  Kind kind;
  int64_t n;
};

float value(int rank, int64_t i, size_t round) {
  const uint32_t mixed =
      static_cast<uint32_t>(rank * 7919 + static_cast<int>(round) * 104729) + static_cast<uint32_t>(i) * 2654435761u;
  return static_cast<float>(static_cast<int32_t>(mixed)) * (rank % 2 == 0 ? 1e-3f : 1e3f);
}

/// Memory of all ranks, and threads as a GPU's blocks: those of one rank meet between exchanges as kernels do.
class Machine {
 public:
  Machine(int n_ranks, int n_blocks, int64_t most) : n_blocks_(n_blocks), ranks_(static_cast<size_t>(n_ranks)) {
    for (Rank& rank : ranks_) {
      rank.data.resize(static_cast<size_t>(most));
      rank.inbox.assign(static_cast<size_t>(2 * n_ranks * place_floats(n_ranks) / 4),
                        Words{{kNothing, kNothing, kNothing, kNothing}});
      rank.signals = std::make_unique<Signals>();
    }
  }

  /// How many ranks' results were wrong, over all exchanges. `absent`: a rank that never comes.
  int run(const std::vector<Exchange>& exchanges, int absent = -1) {
    std::vector<std::thread> threads;
    for (int r = 0; r < n_ranks(); ++r) {
      if (r == absent) continue;
      ranks_[static_cast<size_t>(r)].kernel = std::make_unique<std::barrier<>>(n_blocks_);
      for (int b = 0; b < n_blocks_; ++b) threads.emplace_back([&, r, b] { run_block(exchanges, r, b); });
    }
    if (absent >= 0) std::atomic_ref(stop_).store(1, std::memory_order_relaxed);
    for (std::thread& thread : threads) thread.join();
    return wrong_.load();
  }

 private:
  struct Rank {
    std::vector<float> data;  // malloc aligns to 16 bytes
    std::vector<Words> inbox;
    std::unique_ptr<Signals> signals;
    std::unique_ptr<std::barrier<>> kernel;
    float* floats() { return data.data(); }
  };
  bool stopped() { return std::atomic_ref(stop_).load(std::memory_order_relaxed) != 0; }
  int n_ranks() const { return static_cast<int>(ranks_.size()); }

  Call call_of(int rank, int64_t n) {
    Call call;
    call.rank = rank;
    call.size = n_ranks();
    call.n = n;
    call.stop = &stop_;
    for (size_t r = 0; r < ranks_.size(); ++r) {
      call.data[r] = ranks_[r].floats();
      call.inbox[r] = ranks_[r].inbox.data();
      call.signals[r] = ranks_[r].signals.get();
    }
    return call;
  }

  void run_block(const std::vector<Exchange>& exchanges, int r, int block) {
    Rank& rank = ranks_[static_cast<size_t>(r)];
    const OnHost here{block, n_blocks_, static_cast<uint32_t>(r * 100 + block)};
    for (size_t round = 0; round < exchanges.size(); ++round) {
      const auto [kind, n] = exchanges[round];
      if (block == 0) {
        for (int64_t i = 0; i < n; ++i) rank.floats()[i] = value(r, i, round);
      }
      rank.kernel->arrive_and_wait();
      const Call call = call_of(r, n);
      if (kind == Kind::by_inbox) sum_by_inbox(here, call);
      if (kind == Kind::in_place && n_ranks() <= 2) sum_in_place<2>(here, call);
      if (kind == Kind::in_place && n_ranks() > 2) sum_in_place<8>(here, call);
      rank.kernel->arrive_and_wait();
      if (block == 0 && !stopped() && !is_right(rank, exchanges[round], round)) ++wrong_;
    }
  }

  bool is_right(Rank& rank, const Exchange& exchange, size_t round) const {
    std::vector<float> expected;
    for (int r = 0; r < n_ranks(); ++r) {
      for (int64_t i = 0; i < exchange.n; ++i) {
        if (r == 0) {
          expected.push_back(value(r, i, round));
        } else {
          expected[static_cast<size_t>(i)] += value(r, i, round);
        }
      }
    }
    return std::memcmp(rank.floats(), expected.data(), expected.size() * sizeof(float)) == 0;
  }

  const int n_blocks_;
  std::vector<Rank> ranks_;
  uint32_t stop_ = 0;
  std::atomic<int> wrong_{0};
};

TEST(PeerExchange, SumsAreThoseOfRankOrderToTheBit) {
  for (const int n_ranks : {2, 3, 8}) {
    for (const int n_blocks : {1, 3}) {
      std::vector<Exchange> exchanges;
      for (const int64_t n : {1, 2, 3, 4, 5, 17, 1000, 1023, 4099}) {
        exchanges.push_back({Kind::by_inbox, n});
        exchanges.push_back({Kind::in_place, n});
      }
      EXPECT_EQ(Machine(n_ranks, n_blocks, 4099).run(exchanges), 0) << n_ranks << " ranks, " << n_blocks << " blocks";
    }
  }
}

TEST(PeerExchange, ManyInARowOfChangingSizeAndKind) {
  std::vector<Exchange> exchanges;
  for (int round = 0; round < 600; ++round) {
    const int kind = round * 7 % 10;  // mostly by the inbox, whose halves take turns
    exchanges.push_back({kind < 7 ? Kind::by_inbox : Kind::in_place, 1 + round * 37 % 90});
  }
  EXPECT_EQ(Machine(3, 2, 90).run(exchanges), 0);
}

TEST(PeerExchange, AnInboxOfFullSizeIsUsedToItsEnd) {
  for (const int n_ranks : {2, 4}) {
    const int64_t most = place_floats(n_ranks);
    EXPECT_EQ(Machine(n_ranks, 2, most).run({{Kind::by_inbox, most}, {Kind::by_inbox, most}}), 0);
  }
}

TEST(PeerExchange, EndsOnAllRanksWhenOneNeverComes) {
  for (const Kind kind : {Kind::by_inbox, Kind::in_place}) {
    Machine(3, 2, 100).run({{kind, 100}, {kind, 7}}, 1);  // ends: that is the test
  }
}

}  // namespace
}  // namespace firstlight::peer

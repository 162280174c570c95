// SPDX-License-Identifier: Apache-2.0
// The order of requests, and what it is for: a simulated parallel file system, with a clock of its own, that eight
// ranks are to keep busy.
#include "firstlight/io/request_order.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <queue>
#include <random>
#include <set>

namespace firstlight {
namespace {

TEST(RequestOrder, LittlesLawGivesTheRequestsUnderWay) {
  // 10 GB/s and 4 ms: 40 MB under way, ten requests of 4 MB, and as many again for jitter.
  EXPECT_EQ(requests_in_flight(1e10, 4e-3, 4'000'000, 1, 1000), 20);
  EXPECT_EQ(requests_in_flight(1e10, 4e-3, 4'000'000, 32, 1000), 32);
  EXPECT_EQ(requests_in_flight(1e12, 4e-3, 4'000'000, 32, 256), 256);
  EXPECT_EQ(requests_in_flight(0, 0, 4'000'000, 32, 256), 32);
}

TEST(RequestOrder, EveryRequestComesOnceAndNoneLateOrEarly) {
  std::mt19937 random(1);
  for (const size_t ahead : {size_t{1}, size_t{2}, size_t{7}, size_t{64}}) {
    std::vector<std::vector<int>> targets(3);
    for (size_t r = 0; r < 3; ++r) {
      for (size_t i = 0; i < 50 + 31 * r; ++i) targets[r].push_back(static_cast<int>(random() % 6) - 1);
    }
    const std::vector<TurnOf> order = spread_over_targets(targets, ahead, 8);
    EXPECT_EQ(order.size(), 50u + 81u + 112u);
    std::map<size_t, std::vector<size_t>> taken;
    for (const TurnOf& turn : order) taken[turn.rank].push_back(turn.request);
    for (auto& [rank, requests] : taken) {
      for (size_t turn = 0; turn < requests.size(); ++turn) {
        EXPECT_LT(requests[turn], turn + ahead);
        EXPECT_LT(turn, requests[turn] + ahead);
      }
      std::sort(requests.begin(), requests.end());
      for (size_t i = 0; i < requests.size(); ++i) EXPECT_EQ(requests[i], i);
      EXPECT_EQ(requests.size(), targets[rank].size());
    }
    for (size_t i = 0; i < 150; ++i) EXPECT_EQ(order[i].rank, i % 3);  // while all have some, they take turns
  }
}

TEST(RequestOrder, UnknownTargetsAndOneRequestAheadKeepThePlainOrder) {
  const std::vector<std::vector<int>> unknown{{-1, -1, -1}, {-1, -1}};
  const std::vector<TurnOf> plain{{0, 0}, {1, 0}, {0, 1}, {1, 1}, {0, 2}};
  EXPECT_EQ(spread_over_targets(unknown, 8, 8), plain);
  EXPECT_EQ(spread_over_targets(std::vector<std::vector<int>>{{5, 5, 0}, {5, 0}}, 1, 8), plain);
  EXPECT_TRUE(spread_over_targets({}, 8, 8).empty());
}

TEST(RequestOrder, WhatIsUnderWayIsSpreadOverTheTargets) {
  // Four requests a stripe, eight targets, every rank's file begins on target 0: in plain order all ranks ask one
  // target.
  std::vector<std::vector<int>> targets(4);
  for (std::vector<int>& rank : targets) {
    for (int i = 0; i < 128; ++i) rank.push_back(i / 4 % 8);
  }
  const auto fewest = [&](size_t ahead) {  // different targets among 16 requests in a row, at the worst place
    const std::vector<TurnOf> order = spread_over_targets(targets, ahead, 16);
    size_t least = 8;
    for (size_t at = 0; at + 16 <= order.size() / 2; ++at) {
      std::set<int> seen;
      for (size_t i = at; i < at + 16; ++i) seen.insert(targets[order[i].rank][order[i].request]);
      least = std::min(least, seen.size());
    }
    return least;
  };
  EXPECT_EQ(fewest(1), 1u);
  EXPECT_EQ(fewest(32), 8u);
}

/// 32 targets that give 100 GB/s together, each one request at a time in the order of arrival, and 2 to 5 ms on the way
/// beside. Each rank keeps `depth` requests under way, in its order; a request that comes begins the next.
class SimulatedStorage {
 public:
  static constexpr int kTargets = 32, kRanks = 8;
  static constexpr double kBytesPerSecond = 100e9;
  static constexpr uint64_t kRequest = 4u << 20, kStripe = 16u << 20;
  static constexpr size_t kRequests = 4096;  // of each rank: 17 GB, 1.4 s in which beginning and end do not count

  /// Where a rank's requests lie: stripes over all targets from one of its own on, behind a header of 2 MiB.
  static std::vector<std::vector<int>> targets(bool same_start) {
    std::vector<std::vector<int>> all(kRanks);
    for (size_t r = 0; r < kRanks; ++r) {
      const size_t start = same_start ? 0 : (r * 13 + 5) % kTargets;
      for (size_t i = 0; i < kRequests; ++i) {
        all[r].push_back(static_cast<int>((start + ((2u << 20) + i * kRequest) / kStripe) % kTargets));
      }
    }
    return all;
  }

  /// Bytes per second of simulated time, all ranks together.
  static double rate(const std::vector<std::vector<int>>& targets, const std::vector<TurnOf>& order, int depth) {
    std::mt19937 random(7);
    std::uniform_real_distribution<double> latency(2e-3, 5e-3);
    std::vector<std::vector<size_t>> queue(kRanks);
    for (const TurnOf& turn : order) queue[turn.rank].push_back(turn.request);
    std::vector<size_t> next(kRanks, 0);
    std::vector<double> free_at(kTargets, 0);
    using Event = std::pair<double, size_t>;  // a request arrives at its target, or has come back to its rank
    std::priority_queue<std::pair<Event, int>, std::vector<std::pair<Event, int>>, std::greater<>> events;
    const auto begin = [&](size_t rank, double now) {
      if (next[rank] == queue[rank].size()) return;
      const int target = targets[rank][queue[rank][next[rank]++]];
      events.push({{now + latency(random) / 2, rank}, target});
    };
    for (int i = 0; i < depth; ++i) {
      for (size_t r = 0; r < kRanks; ++r) begin(r, 0);
    }
    double now = 0;
    while (!events.empty()) {
      const auto [event, target] = events.top();
      events.pop();
      now = event.first;
      if (target < 0) {
        begin(event.second, now);
        continue;
      }
      double& target_free = free_at[static_cast<size_t>(target)];
      target_free = std::max(target_free, now) + static_cast<double>(kRequest) / (kBytesPerSecond / kTargets);
      events.push({{target_free + latency(random) / 2, event.second}, -1});
    }
    return static_cast<double>(kRanks * kRequests * kRequest) / now;
  }
};

TEST(RequestOrder, EightRanksFillAPipeOf100GBPerSecondThoughEachReadTakesTwoToFiveMilliseconds) {
  using Storage = SimulatedStorage;
  // What a lone read takes: the way, and the target's time for 4 MiB.
  const double lone = 3.5e-3 + static_cast<double>(Storage::kRequest) * Storage::kTargets / Storage::kBytesPerSecond;
  const int in_flight = requests_in_flight(Storage::kBytesPerSecond, lone, Storage::kRequest, 32, 512);
  const size_t row = Storage::kTargets * Storage::kStripe / Storage::kRequest;  // a stripe of each target
  const int depth = in_flight / Storage::kRanks;
  for (const bool same_start : {false, true}) {
    const auto targets = Storage::targets(same_start);
    const auto spread = spread_over_targets(targets, row, static_cast<size_t>(in_flight));
    EXPECT_GT(Storage::rate(targets, spread, depth), 0.95 * Storage::kBytesPerSecond) << in_flight << " under way";
    EXPECT_LT(Storage::rate(targets, spread, 4), 0.4 * Storage::kBytesPerSecond) << "32 under way";
    if (!same_start) continue;  // files that begin on different targets need no other order
    const auto plain = spread_over_targets(targets, 1, 1);
    EXPECT_LT(Storage::rate(targets, plain, depth), Storage::rate(targets, spread, depth));
  }
}

}  // namespace
}  // namespace firstlight

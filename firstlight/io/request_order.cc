// SPDX-License-Identifier: Apache-2.0
#include "firstlight/io/request_order.h"

#include <algorithm>
#include <cmath>
#include <deque>

namespace firstlight {

namespace {

/// How many of the last requests each target has.
class UnderWay {
 public:
  UnderWay(size_t most, int highest_target) : most_(most), count_(static_cast<size_t>(highest_target) + 1) {}
  size_t of(int target) const { return target < 0 ? 0 : count_[static_cast<size_t>(target)]; }
  void begin(int target) {
    add(target, 1);
    order_.push_back(target);
    if (order_.size() <= most_) return;
    add(order_.front(), static_cast<size_t>(-1));
    order_.pop_front();
  }

 private:
  void add(int target, size_t n) {
    if (target >= 0) count_[static_cast<size_t>(target)] += n;
  }
  size_t most_;
  std::vector<size_t> count_;
  std::deque<int> order_;
};

}  // namespace

int requests_in_flight(double bytes_per_s, double latency_s, uint64_t request_bytes, int least, int most) {
  const double wanted = std::ceil(kJitterRoom * bytes_per_s * latency_s / static_cast<double>(request_bytes));
  if (!(wanted > least)) return least;
  return wanted < most ? static_cast<int>(wanted) : most;
}

std::vector<TurnOf> spread_over_targets(std::span<const std::vector<int>> targets, size_t ahead, size_t in_flight) {
  int highest = 0;
  size_t n_left = 0;
  for (const std::vector<int>& each : targets) {
    n_left += each.size();
    for (const int target : each) highest = std::max(highest, target);
  }
  UnderWay under_way(std::max<size_t>(1, in_flight) - 1, highest);  // the others, while this one is
  std::vector<std::vector<size_t>> window(targets.size());          // of each rank: requests that it may take now
  std::vector<size_t> next(targets.size(), 0);                      // the first that is not in the window yet
  std::vector<TurnOf> order;
  order.reserve(n_left);
  for (size_t rank = 0; order.size() < n_left; rank = (rank + 1) % targets.size()) {
    std::vector<size_t>& mine = window[rank];
    // The window begins at the earliest request that is left, whatever has been taken behind it.
    const size_t end = (mine.empty() ? next[rank] : mine.front()) + std::max<size_t>(1, ahead);
    while (next[rank] < std::min(end, targets[rank].size())) mine.push_back(next[rank]++);
    if (mine.empty()) continue;
    const auto least = std::min_element(mine.begin(), mine.end(), [&](size_t a, size_t b) {
      return under_way.of(targets[rank][a]) < under_way.of(targets[rank][b]);
    });
    under_way.begin(targets[rank][*least]);
    order.push_back({rank, *least});
    mine.erase(least);
  }
  return order;
}

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// In which order, and how many at once, requests keep a parallel file system busy.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace firstlight {

/// Requests under way by which `bytes_per_s` come although each takes `latency_s` (Little's law: L = λ W), times
/// kJitterRoom; between `least` and `most`.
int requests_in_flight(double bytes_per_s, double latency_s, uint64_t request_bytes, int least, int most);
/// Latencies vary, and targets' queues with them: the mean alone leaves some idle. Simulated, 8 ranks, 2 to 5 ms,
/// 100 GB/s over 32 targets (request_order_test.cc): 99 GB/s with twice the mean's requests, 90 with as many.
inline constexpr double kJitterRoom = 2;

/// A request of a rank, counted from 0 in the order in which its bytes are wanted.
struct TurnOf {
  size_t rank = 0, request = 0;
  friend bool operator==(const TurnOf&, const TurnOf&) = default;
};

/// An order of all requests of all ranks, targets[rank][request] being the storage target that holds the request's
/// bytes (−1: not known). Ranks take turns. At its turn a rank takes, of its first `ahead` requests that are left, the
/// one whose target has the fewest of the `in_flight` − 1 requests before it, the earliest among equals: so what is
/// under way is spread over all targets, and no request comes more than `ahead` − 1 turns late. With ahead = 1: the
/// plain order. It must see a stripe of each target ahead to gain anything (simulated, all ranks' files beginning on
/// one target: plain 88 GB/s, half a row of stripes ahead 88, a whole row 99).
std::vector<TurnOf> spread_over_targets(std::span<const std::vector<int>> targets, size_t ahead, size_t in_flight);

}  // namespace firstlight

// SPDX-License-Identifier: Apache-2.0
// Products inside a resident kernel: weights come from the ring. Of 16 rows by 1,024 of k a warp takes 128.
#pragma once
#include "firstlight/ops/cuda_ptx.cuh"
#include "firstlight/ops/resident_x_cuda.cuh"

namespace firstlight::cuda {

/// A lane's weights of a part of a stage.
struct PartWeights {
  uint4 a[kPartSteps], b[kPartSteps];
};

/// Takes a part of the ring's next stage; `n_columns`: how many of k there are from the part's first on. Rows begin at
/// the same bank, so lanes of odd rows read the two steps of 128 bytes in the other order.
__device__ __forceinline__ void take_part(Ring& ring, int part, int n_columns, PartWeights& w) {
  const int lane = static_cast<int>(threadIdx.x) % 32, odd = lane / 4 % 2;
  const std::byte* row = ring.stage() + lane / 4 * kStagePitch + part * kPartColumns * 2;
  if (part == 0) ring.shared.full[ring.at.stage].wait(ring.at.parity);
  const auto load = [&](int s, uint4& a, uint4& b) {
    const int k = lane_column(0) + s * 32;
    a = b = make_uint4(0, 0, 0, 0);  // what lies behind the columns there are is anything, NaNs too
    if (k < n_columns) {
      a = *reinterpret_cast<const uint4*>(row + k * 2);
      b = *reinterpret_cast<const uint4*>(row + 8 * kStagePitch + k * 2);
    }
  };
#pragma unroll
  for (int s = 0; s < kPartSteps; s += 2) {
    uint4 a[2], b[2];
    load(s + odd, a[0], b[0]);
    load(s + 1 - odd, a[1], b[1]);
    w.a[s] = odd ? a[1] : a[0], w.a[s + 1] = odd ? a[0] : a[1];
    w.b[s] = odd ? b[1] : b[0], w.b[s + 1] = odd ? b[0] : b[1];
  }
  if (part + 1 < kStageParts && n_columns > kPartColumns) return;
  uint32_t of_loads = 0;
#pragma unroll
  for (int s = 0; s < kPartSteps; ++s) of_loads |= w.a[s].x | w.b[s].x;
  ring.shared.empty[ring.at.stage].arrive_behind(of_loads, static_cast<uint32_t>(ring.n_stages) >> 8);
  ring.advance();
}

/// A lane's sum of a unit. Chains: k's even and odd eighths apart, and where the rows of x are more than four, the high
/// and low terms' products, too.
template <bool kFew>
__device__ __forceinline__ float sum_of_chains(const float (&chains)[kFew ? 2 : 4][4], int i) {
  const float high = chains[0][i] + chains[1][i];
  if constexpr (kFew) return high;
  return high + (chains[2 % (kFew ? 2 : 4)][i] + chains[3 % (kFew ? 2 : 4)][i]);
}

template <bool kFew>
__device__ __forceinline__ void multiply(const PartWeights& w, const LaneX<kFew>& x, int b,
                                         float (&sums)[kFew ? 2 : 4][4]) {
#pragma unroll
  for (int s = 0; s < kPartSteps; ++s) {
    const uint4 v = w.a[s], u = w.b[s];
    mma(sums[0], v.x, u.x, v.y, u.y, x.terms[b][s].x, x.terms[b][s].y);
    mma(sums[1], v.z, u.z, v.w, u.w, x.terms[b][s].z, x.terms[b][s].w);
    if constexpr (!kFew) {
      mma(sums[2], v.x, u.x, v.y, u.y, x.low[b][s].x, x.low[b][s].y);
      mma(sums[3], v.z, u.z, v.w, u.w, x.low[b][s].z, x.low[b][s].w);
    }
  }
}

/// Parts that have been taken and not used: with few rows of x there are registers for two.
template <bool kFew>
struct TakenParts {
  static constexpr int kMost = kFew ? 2 : 1;
  PartWeights parts[kMost] = {};  ///< (what no path writes keeps its registers from everyone in the kernel's loop)
  /// A unit's first.
  __device__ __forceinline__ void take_first(Ring& ring, int k) {
    take_part(ring, 0, k, parts[0]);
    if constexpr (kFew) {
      if (k > kPartColumns) take_part(ring, 1, k - kPartColumns, parts[1]);
    }
  }
};

/// A unit's parts of a group. An x that is longer than a group is asked for anew when it has been used: it has a
/// group's time to come.
template <bool kFew>
__device__ __forceinline__ void multiply_group(Ring& ring, TakenParts<kFew>& w, LaneX<kFew>& x, const XAt<kFew>& x_at,
                                               int k0, float (&sums)[kFew ? 2 : 4][4]) {
  constexpr int kMost = TakenParts<kFew>::kMost;
  static_assert(kGroup % kStageParts == 0);
  const int k = x_at.k;
#pragma unroll
  for (int b = 0; b < kGroup; ++b) {
    if (k0 + b * kPartColumns >= k) break;
    multiply<kFew>(w.parts[b % kMost], x, b, sums);
    const int n_behind = k - k0 - (b + kMost) * kPartColumns, again = k0 + kGroupColumns + b * kPartColumns;
    if (n_behind > 0) take_part(ring, (b + kMost) % kStageParts, n_behind, w.parts[b % kMost]);
    if (k > kGroupColumns) x.load(x_at, again < k ? again : b * kPartColumns, b);
  }
}

/// Leaves a warp's sums of a unit to the finishers.
template <bool kFew>
__device__ __forceinline__ void put_sums(Ring& ring, const float (&sums)[kFew ? 2 : 4][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  float* own = ring.sums(warp) + lane % 4 * 2 * kSumsPitch + lane / 4;
  ring.shared.sums_empty[ring.sums_at.stage].wait(ring.sums_at.parity ^ 1);
#pragma unroll
  for (int i = 0; i < 4; ++i) own[i % 2 * kSumsPitch + i / 2 * 8] = sum_of_chains<kFew>(sums, i);
  ring.shared.sums_full[ring.sums_at.stage].arrive();
  ring.sums_at.advance(kSumsSlots);
}

/// The consumers' part of a product. `barrier`: has not been waited for. Parts are taken before, and so 64 KiB more are
/// asked for while blocks wait for one another.
template <bool kFew>
__device__ __forceinline__ void run_product(const ResidentProduct& p, Ring& ring, const GridBarrier& barrier) {
  const int k = p.x.k;
  TakenParts<kFew> w;
  int unit = ring.take_unit();
  if (unit != kNoUnit) w.take_first(ring, k);
  barrier.wait_all();
  LaneX<kFew> x;
  const XAt<kFew> x_at(p.x, p.rows);
#pragma unroll
  for (int b = 0; b < kGroup; ++b) x.load(x_at, b * kPartColumns, b);
  while (unit != kNoUnit) {
    float sums[kFew ? 2 : 4][4] = {};
    for (int k0 = 0; k0 < k; k0 += kGroupColumns) multiply_group<kFew>(ring, w, x, x_at, k0, sums);
    unit = ring.take_unit();
    if (unit != kNoUnit) w.take_first(ring, k);
    put_sums<kFew>(ring, sums);
  }
}

}  // namespace firstlight::cuda

// SPDX-License-Identifier: Apache-2.0
// Attention of single rows inside a resident kernel: a block's eight warps are two crews, which work as the blocks of
// attend_singles_cuda.cu do (the same bits). Their keys and values pass through stages that the ring of weights lends.
#pragma once
#include "firstlight/ops/attend_item_cuda.cuh"
#include "firstlight/ops/resident_product_cuda.cuh"

namespace firstlight::cuda {

/// Stages of the ring that a crew borrows: two pages of its four warps' keys and values.
inline constexpr int kCrewStages = 1;

/// Bytes in which both crews meet, a group of `heads` heads.
__host__ __device__ constexpr int meeting_bytes(int heads, int head_dim) {
  return 2 * kSinglesWarps * heads * (head_dim + 4) * 4;
}

/// Crew c of a block takes item blockIdx.x + c * gridDim.x, and every 2 gridDim.x-th from there on.
__device__ __forceinline__ int first_item(int crew) {
  return static_cast<int>(blockIdx.x) + crew * static_cast<int>(gridDim.x);
}
/// Stages that the crews of this block borrow.
__device__ __forceinline__ int borrowed_stages(const AttendPlan& plan) {
  return kCrewStages *
         (static_cast<int>(first_item(0) < plan.n_items) + static_cast<int>(first_item(1) < plan.n_items));
}

/// The producer's part: it gives stages away.
__device__ inline void lend_stages(const SinglesParams& p, Ring& ring) {
  const int n = borrowed_stages(AttendPlan(p));
  for (int i = 0; i < n; ++i) {
    ring.shared.empty[ring.at.stage].wait(ring.at.parity ^ 1);
    if (threadIdx.x % 32 == 0) ring.shared.full[ring.at.stage].arrive();
    ring.advance();
  }
}

/// A crew's items. `ready`: see attend_item.
template <int kDim, class Ready>
__device__ void run_crew(const SinglesParams& p, const AttendPlan& plan, std::byte* keys, float* meeting_sums,
                         const Ready& ready) {
  constexpr int kStages = 256 / kDim, kWarpBytes = KeyRing<kDim, kStages>::kBytes;
  static_assert(kCrewStages == 1 && kSinglesWarps * kWarpBytes <= kStageBytes && Meeting<kDim>::kStride == kDim + 4);
  __shared__ float maxima[2][kSinglesWarps][kHeadsAtOnce], divisors[2][kSinglesWarps][kHeadsAtOnce];
  const int heads = p.heads, crew = crew_number();
  const Meeting<kDim> meeting{meeting_sums, maxima[crew], divisors[crew], heads};
  Item item;
  for (int number = first_item(crew); number < plan.n_items; number += 2 * static_cast<int>(gridDim.x)) {
    find_item(p, plan.each, number, item);
    attend_item<kDim, kStages, true>(p, item, shared_address(keys), meeting, ready);
  }
}

/// The consumers' part. `barrier`: has not been waited for.
template <int kDim>
__device__ __forceinline__ void run_attend(const SinglesParams& p, Ring& ring, const GridBarrier& barrier) {
  const AttendPlan plan(p);
  const int n_stages = borrowed_stages(plan), crew = crew_number();
  RingPosition mine = ring.at;
  for (int i = 0; i < crew * kCrewStages; ++i) mine.advance(ring.n_stages);
  bool waited = false;
  const auto ready = [&] {
    if (waited) return;
    waited = true;
    if (crew_thread() == 0) barrier.wait();
    sync_crew();
  };
  if (first_item(crew) < plan.n_items) {
    const int heads = p.heads;
    ring.shared.full[mine.stage].wait(mine.parity);
    run_crew<kDim>(p, plan, ring.stage(mine.stage),
                   reinterpret_cast<float*>(ring.meeting + crew * meeting_bytes(heads, kDim) / 2), ready);
  }
  // Weights go on coming while chunks are merged. What was written here by plain stores comes before what the copies
  // will write here.
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncwarp();
  for (int i = 0; i < n_stages; ++i) {
    ring.shared.full[ring.at.stage].wait(ring.at.parity);
    ring.shared.empty[ring.at.stage].arrive();
    ring.advance();
  }
  ready();
  if (p.n_chunks > 1) merge_items<kDim, true>(p, plan, first_item(crew), 2 * static_cast<int>(gridDim.x));
}

}  // namespace firstlight::cuda

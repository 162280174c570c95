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

/// What a block has to do in an attention: crew c takes item blockIdx.x + c * gridDim.x, and every 2 gridDim.x-th from
/// there on. The same in all its warps.
struct AttendPlan {
  int each, n_items;
  __device__ explicit AttendPlan(const SinglesParams& p) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    each = pages_each(p);
    unsigned n = 0;
    for (int r = lane; r < p.n_rows; r += 32) n += static_cast<unsigned>(Cut(p, p.rows[r].position, each).n_items);
    n_items = static_cast<int>(__reduce_add_sync(0xffffffffu, n)) * p.head_blocks;
  }
  __device__ int first(int crew) const { return static_cast<int>(blockIdx.x) + crew * static_cast<int>(gridDim.x); }
  __device__ bool has(int crew) const { return first(crew) < n_items; }
  __device__ int n_stages() const { return kCrewStages * (static_cast<int>(has(0)) + static_cast<int>(has(1))); }
};

/// The producer's part: it gives stages away.
__device__ inline void lend_stages(const SinglesParams& p, Ring& ring) {
  const int n = AttendPlan(p).n_stages();
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
  static_assert(((kMostChunks + 1) * kHeadsAtOnce + kSinglesWarps * kHeadsAtOnce * kDim) * 4 <= kStageBytes);
  __shared__ float maxima[2][kSinglesWarps][kHeadsAtOnce], divisors[2][kSinglesWarps][kHeadsAtOnce];
  const int heads = p.heads, crew = crew_number();
  const Meeting<kDim> meeting{meeting_sums, maxima[crew], divisors[crew], heads};
  Item item;
  for (int number = plan.first(crew); find_item(p, plan.each, number, item);
       number += 2 * static_cast<int>(gridDim.x)) {
    attend_item<kDim, kStages>(p, item, shared_address(keys), meeting, ready);
    if (item.n_chunks == 1 || !comes_last(p, item)) continue;
    float* scratch = reinterpret_cast<float*>(keys);
    item.n_heads <= 4 ? merge_chunks<kDim, 4>(p, item, scratch) : merge_chunks<kDim, 8>(p, item, scratch);
  }
}

/// The consumers' part. `barrier`: has not been waited for.
template <int kDim>
__device__ __forceinline__ void run_attend(const SinglesParams& p, Ring& ring, const GridBarrier& barrier) {
  const AttendPlan plan(p);
  const int n_stages = plan.n_stages(), crew = crew_number();
  RingPosition mine = ring.at;
  for (int i = 0; i < crew * kCrewStages; ++i) mine.advance(ring.n_stages);
  bool waited = false;
  const auto ready = [&] {
    if (waited) return;
    waited = true;
    if (crew_thread() == 0) barrier.wait();
    sync_crew();
  };
  if (plan.has(crew)) {
    const int heads = p.heads;
    ring.shared.full[mine.stage].wait(mine.parity);
    run_crew<kDim>(p, plan, ring.stage(mine.stage),
                   reinterpret_cast<float*>(ring.meeting + crew * meeting_bytes(heads, kDim) / 2), ready);
  }
  ready();
  // What was written here by plain stores comes before what the copies will write here.
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncwarp();
  for (int i = 0; i < n_stages; ++i) {
    ring.shared.full[ring.at.stage].wait(ring.at.parity);
    ring.shared.empty[ring.at.stage].arrive();
    ring.advance();
  }
}

}  // namespace firstlight::cuda

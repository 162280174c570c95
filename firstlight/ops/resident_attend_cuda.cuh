// SPDX-License-Identifier: Apache-2.0
// Attention of single rows inside a resident kernel: a block's eight warps are two crews, which work as the blocks of
// attend_singles_cuda.cu do (the same bits). Their keys and values pass through stages that the ring of weights lends.
#pragma once
#include "firstlight/ops/attend_item_cuda.cuh"
#include "firstlight/ops/resident_product_cuda.cuh"

namespace firstlight::cuda {

/// Heads that can meet in the sums' memory; more borrow a stage for it.
inline constexpr int kHeadsMetInSums = 4;

/// What a block has to do in an attention: crew c takes item blockIdx.x + c * gridDim.x, and every 2 gridDim.x-th from
/// there on. The same in all its warps.
struct AttendPlan {
  int each, n_items;
  __device__ explicit AttendPlan(const SinglesParams& p) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    each = pages_each(p);
    unsigned n = 0;
    for (int r = lane; r < p.n_rows; r += 32) n += static_cast<unsigned>(Cut(p, p.rows[r].position, each).n_items);
    n_items = static_cast<int>(__reduce_add_sync(0xffffffffu, n)) * n_head_blocks(p.attend);
  }
  __device__ int first(int crew) const { return static_cast<int>(blockIdx.x) + crew * static_cast<int>(gridDim.x); }
  __device__ bool has(int crew) const { return first(crew) < n_items; }
  /// Stages of the ring: one a crew, one for both to meet in.
  __device__ int n_stages(const SinglesParams& p) const {
    if (!has(0)) return 0;
    const int heads = min(kHeadsAtOnce, p.attend.n_heads / p.attend.kv.n_kv_heads);
    return 1 + static_cast<int>(has(1)) + static_cast<int>(heads > kHeadsMetInSums);
  }
};

/// The producer's part: it gives stages away.
__device__ inline void lend_stages(const SinglesParams& p, Ring& ring) {
  const int n = AttendPlan(p).n_stages(p);
  for (int i = 0; i < n; ++i) {
    ring.shared.empty[ring.at.stage].wait(ring.at.parity ^ 1);
    if (threadIdx.x % 32 == 0) ring.shared.full[ring.at.stage].arrive();
    ring.at.advance();
  }
}

/// A crew's items. `ready`: see attend_item.
template <int kDim, class Ready>
__device__ void run_crew(const SinglesParams& p, const AttendPlan& plan, std::byte* keys, float* meeting_sums,
                         const Ready& ready) {
  constexpr int kStages = 128 / kDim;
  static_assert(kSinglesWarps * KeyRing<kDim, kStages>::kBytes <= kStageBytes);
  static_assert(((kMostChunks + 1) * kHeadsAtOnce + kSinglesWarps * kHeadsAtOnce * kDim) * 4 <= kStageBytes);
  __shared__ float maxima[2][kSinglesWarps][kHeadsAtOnce], divisors[2][kSinglesWarps][kHeadsAtOnce];
  const int heads = min(kHeadsAtOnce, p.attend.n_heads / p.attend.kv.n_kv_heads), crew = crew_number();
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

/// The consumers' part. `barrier`: has been arrived at, and not been waited for.
template <int kDim>
__device__ void run_attend(const SinglesParams& p, Ring& ring, const GridBarrier& barrier) {
  const AttendPlan plan(p);
  const int n_stages = plan.n_stages(p), crew = crew_number();
  const bool crew_has = plan.has(crew), many_heads = p.attend.n_heads / p.attend.kv.n_kv_heads > kHeadsMetInSums;
  RingPosition mine = ring.at, last = ring.at;
  if (crew == 1 && n_stages > 1) mine.advance();
  for (int i = 1; i < n_stages; ++i) last.advance();
  bool waited = false;
  const auto ready = [&] {
    if (waited) return;
    waited = true;
    if (crew_thread() == 0) barrier.wait();
    sync_crew();
  };
  if (crew_has) {
    constexpr int kMeeting = kSinglesWarps * kHeadsMetInSums * Meeting<kDim>::kStride;  // floats
    static_assert(2 * kMeeting * 4 <= static_cast<int>(sizeof(ResidentShared::sums) + sizeof(ResidentShared::more)));
    static_assert(2 * 2 * kMeeting * 4 <= kStageBytes);
    float* meeting = &ring.shared.sums[0][0][0][0] + crew * kMeeting;
    ring.shared.full[mine.stage].wait(mine.parity);
    if (many_heads) {
      ring.shared.full[last.stage].wait(last.parity);
      meeting = reinterpret_cast<float*>(ring.stages + last.stage * kStageBytes) + crew * 2 * kMeeting;
    }
    run_crew<kDim>(p, plan, ring.stages + mine.stage * kStageBytes, meeting, ready);
  }
  ready();
  // What was written here by plain stores comes before what the copies will write here.
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncwarp();
  for (int i = 0; i < n_stages; ++i) {
    ring.shared.full[ring.at.stage].wait(ring.at.parity);
    if (threadIdx.x % 32 == 0) ring.shared.empty[ring.at.stage].arrive();
    ring.at.advance();
  }
}

}  // namespace firstlight::cuda

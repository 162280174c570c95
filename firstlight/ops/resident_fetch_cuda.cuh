// SPDX-License-Identifier: Apache-2.0
// Products inside a resident kernel: the warp that fetches their weights into the ring.
#pragma once
#include "firstlight/ops/resident_shared_cuda.cuh"

namespace firstlight::cuda {

/// The producer warp's part of a product. Memory does not serve all multiprocessors alike (of a large product the best
/// served reads 1.7 times as much as the worst), so each takes the next unit when the ring has room; by then the number
/// is there, asked for a stage ahead.
__device__ __forceinline__ void fetch_product(const ResidentProduct& p, Ring& ring, unsigned* counter,
                                              uint64_t policy) {
  const int lane = static_cast<int>(threadIdx.x) % 32, part = lane / 8 % 2, k_all = p.x.k, n_units = p.n_units;
  const __nv_bfloat16* const w = p.w;
  const auto next_unit = [&] { return lane == 0 ? static_cast<int>(atomicAdd(counter, 1u)) : 0; };
  int unit = __shfl_sync(0xffffffffu, next_unit(), 0);
  for (int next = 0; unit < n_units; unit = __shfl_sync(0xffffffffu, next, 0)) {
    if (lane == 0) ring.put_unit(unit);
    ring.unit_at.advance(kUnitSlots);
    const int n = p.n_rows(unit, 0) + p.n_rows(unit, 1);
    const bool there = lane < 16 && lane % 8 < p.n_rows(unit, part);
    const __nv_bfloat16* row = w + int64_t{p.row(unit, part) + lane % 8} * k_all;
    for (int k = 0; k < k_all; k += kStageColumns) {
      MemoryBarrier& full = ring.shared.full[ring.at.stage];
      const unsigned bytes = static_cast<unsigned>(min(kStageColumns, k_all - k)) * 2;
      if (k + kStageColumns >= k_all) next = next_unit();
      ring.shared.empty[ring.at.stage].wait(ring.at.parity ^ 1);
      if (lane == 0) full.arrive_and_expect(bytes * static_cast<unsigned>(n));
      __syncwarp();
      if (there) {
        copy_bulk(shared_address(ring.stage()) + static_cast<uint32_t>(lane * kStagePitch), row + k, bytes, full,
                  policy);
      }
      ring.advance();
    }
  }
  if (lane == 0) ring.put_unit(kNoUnit);
  ring.unit_at.advance(kUnitSlots);
}

}  // namespace firstlight::cuda

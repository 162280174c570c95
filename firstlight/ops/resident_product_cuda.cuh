// SPDX-License-Identifier: Apache-2.0
// Products inside a resident kernel: the bits of matvec_cuda.cu, with weights from the ring. Of a stage of 16 rows by
// 1,024 of k a warp takes 128, and its share of x straight from L2 into registers, a stage ahead.
#pragma once
#include "firstlight/ops/cuda_ptx.cuh"
#include "firstlight/ops/resident_finish_cuda.cuh"
#include "firstlight/ops/resident_x_cuda.cuh"

namespace firstlight::cuda {

/// Calls fn(first row, rows, k, columns) for every stage of a block's part of a product, in order.
template <class Fn>
__device__ __forceinline__ void each_stage(const ResidentProduct& p, const Fn& fn) {
  const int grid = static_cast<int>(gridDim.x);
  const int begin = (static_cast<int>(blockIdx.x) - p.first + grid) % grid;
  for (int unit = begin; unit < p.n_units; unit += grid) {
    const int row0 = p.row(unit, 0), row1 = p.row(unit, 1), n0 = p.n_rows(unit, 0), n1 = p.n_rows(unit, 1);
    for (int k = 0; k < p.k; k += kStageColumns) {
      const int columns = min(kStageColumns, p.k - k);
      fn(row0, n0, k, columns);
      if (n1 > 0) fn(row1, n1, k, columns);
    }
  }
}

/// The producer warp's part of a product.
__device__ inline void fetch_product(const ResidentProduct& p, Ring& ring, uint64_t policy) {
  const int lane = static_cast<int>(threadIdx.x) % 32, width = p.k;
  const __nv_bfloat16* const w = p.w;
  each_stage(p, [&](int row, int n, int k, int columns) {
    MemoryBarrier& full = ring.shared.full[ring.at.stage];
    const unsigned bytes = static_cast<unsigned>(columns) * 2;
    ring.shared.empty[ring.at.stage].wait(ring.at.parity ^ 1);
    if (lane == 0) full.arrive_and_expect(bytes * static_cast<unsigned>(n));
    __syncwarp();
    if (lane < n) {
      copy_bulk(shared_address(ring.stage()) + static_cast<uint32_t>(lane * kStagePitch),
                w + int64_t{row + lane} * width + k, bytes, full, policy);
    }
    ring.advance();
  });
}

/// Takes the ring's next stage in.
__device__ __forceinline__ void multiply_stage(Ring& ring, const SplitX& x, const LaneK& lane_k, int n_columns,
                                               float (&sums)[2][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::byte* row = ring.stage() + lane / 4 * kStagePitch;
  uint4 a[kStageSteps], b[kStageSteps];
  ring.shared.full[ring.at.stage].wait(ring.at.parity);
#pragma unroll
  for (int s = 0; s < kStageSteps; ++s) {
    const int k = lane_k.of(s);
    a[s] = b[s] = make_uint4(0, 0, 0, 0);  // what lies behind the columns there are is anything, NaNs too
    if (k < n_columns) {
      a[s] = *reinterpret_cast<const uint4*>(row + k * 2);
      b[s] = *reinterpret_cast<const uint4*>(row + 8 * kStagePitch + k * 2);
    }
  }
  __syncwarp();
  if (lane == 0) ring.shared.empty[ring.at.stage].arrive();
  ring.advance();
#pragma unroll
  for (int s = 0; s < kStageSteps; ++s) {
    mma(sums[0], a[s].x, b[s].x, a[s].y, b[s].y, x.high[s].x, x.high[s].y);
    mma(sums[1], a[s].z, b[s].z, a[s].w, b[s].w, x.high[s].z, x.high[s].w);
    mma(sums[0], a[s].x, b[s].x, a[s].y, b[s].y, x.low[s].x, x.low[s].y);
    mma(sums[1], a[s].z, b[s].z, a[s].w, b[s].w, x.low[s].z, x.low[s].w);
  }
}

/// The consumers' part of a product.
__device__ __forceinline__ RingPosition run_product(const ResidentProduct& p, Ring ring) {
  const int lane = static_cast<int>(threadIdx.x) % 32, grid = static_cast<int>(gridDim.x);
  int unit = (static_cast<int>(blockIdx.x) - p.first + grid) % grid;
  if (unit >= p.n_units) return ring.at;
  const LaneK lane_k(p.join);
  const int column = static_cast<int>(threadIdx.x) % 128 / 16, r = static_cast<int>(threadIdx.x) % 16;
  const RopeLane rope_lane(p, column);
  const bool there = lane / 4 < p.rows, normed = p.norm != nullptr;
  const float* row = p.x + lane / 4 * p.x_stride;
  RawX raw;
  float scale = 1;
  load_x(p, row, there, lane_k, 0, raw);
  if (normed) {
    sum_squares(p, ring.shared);
    scale = norm_scale(p, ring.shared, min(lane / 4, p.rows - 1));
  }
  for (; unit < p.n_units; unit += grid) {
    float sums[2][2][4] = {};
    float2 angle = make_float2(1, 0);
    if (p.join == ResidentJoin::rope && column < p.rows && unit / p.per < p.n_heads + p.kv.n_kv_heads) {
      angle = __ldg(p.angles + int64_t{rope_lane.row.angle} * (p.kv.head_dim / 2) + unit % p.per * 16 + r);
    }
    float before = 0;  // what the sums are added to
    if (p.join == ResidentJoin::add) {
      const int part = static_cast<int>(threadIdx.x) / 128;
      if (column < p.rows && r < p.n_rows(unit, part)) {
        before = __ldcg(p.out + column * p.out_stride + p.row(unit, part) + r);
      }
    }
    const bool second = p.n_rows(unit, 1) > 0;
    const int width = p.k;
    for (int k = 0; k < width; k += kStageColumns) {
      SplitX x;
      split_x(raw, normed, scale, x);
      load_x(p, row, there, lane_k, k + kStageColumns < width ? k + kStageColumns : 0, raw);
      multiply_stage(ring, x, lane_k, width - k, sums[0]);
      if (second) multiply_stage(ring, x, lane_k, width - k, sums[1]);
    }
    finish_unit(p, unit, sums, ring.shared.sums, rope_lane, angle, before);
  }
  return ring.at;
}

}  // namespace firstlight::cuda

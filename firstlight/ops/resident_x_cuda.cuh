// SPDX-License-Identifier: Apache-2.0
// A product's x inside a resident kernel: a lane's share straight from L2 into registers, normed and split on its way.
#pragma once
#include "firstlight/ops/cuda_kernel.cuh"
#include "firstlight/ops/norm_cuda.cuh"
#include "firstlight/ops/resident_shared_cuda.cuh"

namespace firstlight::cuda {

/// A lane's share of x of one stage, as loaded: row lane / 4, of each step 8 values; and the norm's weights.
struct RawX {
  float4 x[kStageSteps][2];
  uint4 norm[kStageSteps];
};
/// The same as the product takes it.
struct SplitX {
  uint4 high[kStageSteps], low[kStageSteps];
};

/// Where a lane's 8 values of a step lie in a stage: as matvec's kernels deal k to their warps.
struct LaneK {
  int first, jump;
  __device__ explicit LaneK(ResidentJoin join) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const bool halves = join == ResidentJoin::silu;  // warps share out 512 of k at a time
    first = warp * (halves ? 64 : 128) + lane % 4 * 8;
    jump = halves ? 448 : 0;
  }
  __device__ __forceinline__ int of(int step) const { return first + step * 32 + step / 2 * jump; }
};

__device__ __forceinline__ void load_x(const ResidentProduct& p, const float* row, bool there, const LaneK& lane_k,
                                       int k0, RawX& to) {
#pragma unroll
  for (int s = 0; s < kStageSteps; ++s) {
    const int k = k0 + lane_k.of(s);
    const bool real = there && k < p.k;
    to.x[s][0] = to.x[s][1] = make_float4(0, 0, 0, 0);
    to.norm[s] = make_uint4(0, 0, 0, 0);
    if (real) {
      to.x[s][0] = __ldcg(reinterpret_cast<const float4*>(row + k));
      to.x[s][1] = __ldcg(reinterpret_cast<const float4*>(row + k + 4));
      if (p.norm) to.norm[s] = __ldg(reinterpret_cast<const uint4*>(p.norm + k));
    }
  }
}

__device__ __forceinline__ float2 two(uint32_t bf16s) {
  return make_float2(__uint_as_float(bf16s << 16), __uint_as_float(bf16s & 0xffff0000u));
}

/// Sums of squares of x's rows in parts, the bits of rms_norm_cuda.cu: its threads are dealt to these warps in turn.
__device__ inline void sum_squares(const ResidentProduct& p, ResidentShared& shared) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int quads = p.k / 4, n_warps = norm_threads(quads) / 32, n = p.rows * n_warps;
  constexpr int kAtOnce = 4;
  for (int base = warp; base < n; base += kAtOnce * kResidentWarps) {
    float4 first[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int item = base + i * kResidentWarps, c = item % n_warps * 32 + lane;
      first[i] = make_float4(0, 0, 0, 0);
      if (item < n && c < quads) {
        first[i] = __ldcg(reinterpret_cast<const float4*>(p.x + item / n_warps * p.x_stride) + c);
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int item = base + i * kResidentWarps, c = item % n_warps * 32 + lane;
      if (item >= n) break;
      float squares = c < quads ? add_squares(0, first[i]) : 0;
      for (int more = c + n_warps * 32; more < quads; more += n_warps * 32) {
        squares =
            add_squares(squares, __ldcg(reinterpret_cast<const float4*>(p.x + item / n_warps * p.x_stride) + more));
      }
      squares = warp_sum(squares);
      if (lane == 0) shared.norm_parts[item / n_warps][item % n_warps] = squares;
    }
  }
  sync_consumers();
}

/// After sum_squares.
__device__ __forceinline__ float norm_scale(const ResidentProduct& p, const ResidentShared& shared, int row) {
  const int n_warps = norm_threads(p.k / 4) / 32;
  float sum = 0;
#pragma unroll
  for (int w = 0; w < 32; ++w) {  // all loads at once: one after the other they would take 0.6 us
    const float part = shared.norm_parts[row][w];
    sum += w < n_warps ? part : 0;
  }
  return rsqrtf(sum / static_cast<float>(p.k) + p.eps);
}

/// Eight values of x, normed and split.
__device__ __forceinline__ void split_eight(float4 a, float4 b, uint4 norm, bool normed, float scale, uint4& high,
                                            uint4& low) {
  if (normed) {
    const float2 w0 = two(norm.x), w1 = two(norm.y), w2 = two(norm.z), w3 = two(norm.w);
    a.x = a.x * scale * w0.x, a.y = a.y * scale * w0.y, a.z = a.z * scale * w1.x, a.w = a.w * scale * w1.y;
    b.x = b.x * scale * w2.x, b.y = b.y * scale * w2.y, b.z = b.z * scale * w3.x, b.w = b.w * scale * w3.y;
  }
  split(a.x, a.y, high.x, low.x);
  split(a.z, a.w, high.y, low.y);
  split(b.x, b.y, high.z, low.z);
  split(b.z, b.w, high.w, low.w);
}

__device__ __forceinline__ void split_x(const RawX& raw, bool normed, float scale, SplitX& to) {
#pragma unroll
  for (int s = 0; s < kStageSteps; ++s) {
    split_eight(raw.x[s][0], raw.x[s][1], raw.norm[s], normed, scale, to.high[s], to.low[s]);
  }
}

}  // namespace firstlight::cuda

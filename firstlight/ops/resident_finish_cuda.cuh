// SPDX-License-Identifier: Apache-2.0
// The end of a unit of a product inside a resident kernel: the warps' sums become what the product is for.
#pragma once
#include "firstlight/ops/cuda_kernel.cuh"
#include "firstlight/ops/resident_shared_cuda.cuh"
#include "firstlight/ops/rope_cuda.cuh"

namespace firstlight::cuda {

/// What a thread of the last step of a unit has to know in time: its row's place in the pages.
struct RopeLane {
  RowOnDevice row{};
  std::byte* page = nullptr;
  __device__ __forceinline__ RopeLane(const ResidentProduct& p, int column) {
    if (p.join != ResidentJoin::rope || column >= p.rows) return;
    row = p.on_device[column];
    page = p.kv.data + static_cast<uint64_t>(p.pages[row.pages + row.position / kPageTokens]) * p.kv.page_stride;
  }
};

__device__ inline void rope_and_store(const ResidentProduct& p, int unit, int r, float a, float b, float2 angle,
                                      const RopeLane& lane) {
  const int d = p.kv.head_dim, half = d / 2, h = unit / p.per, i = unit % p.per * 16 + r;
  const bool rotated = h < p.n_heads + p.kv.n_kv_heads;
  if (rotated) {
    const float2 turned = rotate(a, b, angle);
    a = turned.x, b = turned.y;
  }
  float* head = p.out + lane.row.row * p.out_stride + h * d;
  head[i] = a;
  head[half + i] = b;
  if (h < p.n_heads) return;
  __nv_bfloat16* slot = reinterpret_cast<__nv_bfloat16*>(lane.page) +
                        (int64_t{h - p.n_heads} * kPageTokens + lane.row.position % kPageTokens) * d;
  narrow(a, slot + i);
  narrow(b, slot + half + i);
}

__device__ __forceinline__ float bias_of(const ResidentProduct& p, int i) {
  if (!p.bias) return 0;
  return p.bias_is_bf16 ? widen(static_cast<const __nv_bfloat16*>(p.bias)[i]) : static_cast<const float*>(p.bias)[i];
}

/// Adds up the warps' sums, always in the same order, and does with them what the product is for. 128 threads take a
/// tile's 16 x 8 values; where the two tiles belong together, both.
__device__ inline void finish_unit(const ResidentProduct& p, int unit, const float (&sums)[2][2][4],
                                   float (*shared)[kResidentWarps][16 * kMatvecRows], const RopeLane& rope_lane,
                                   float2 angle, float before) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  sync_consumers();  // the unit before has been added up
#pragma unroll
  for (int part = 0; part < 2; ++part) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      shared[part][warp][column * 16 + row] = sums[part][0][i] + sums[part][1][i];
    }
  }
  sync_consumers();
  const int within = static_cast<int>(threadIdx.x) % 128, second = static_cast<int>(threadIdx.x) / 128;
  const int column = within / 16, r = within % 16;
  const bool together = p.join == ResidentJoin::silu || p.join == ResidentJoin::rope;
  if (column >= p.rows || (together && second == 1)) return;
  const auto total_of = [&](int part) {
    float total = bias_of(p, p.row(unit, part) + r);
#pragma unroll
    for (int w = 0; w < kResidentWarps; ++w) total += shared[part][w][within];
    return total;
  };
  if (r >= p.n_rows(unit, together ? 0 : second)) return;
  const float total = total_of(together ? 0 : second);
  if (p.join == ResidentJoin::rope) {
    rope_and_store(p, unit, r, total, total_of(1), angle, rope_lane);
    return;
  }
  float* out = p.out + column * p.out_stride + p.row(unit, together ? 0 : second) + r;
  if (p.join == ResidentJoin::store) *out = total;
  if (p.join == ResidentJoin::add) *out = before + total;
  if (p.join == ResidentJoin::silu) *out = total / (1 + __expf(-total)) * total_of(1);
}

}  // namespace firstlight::cuda

// SPDX-License-Identifier: Apache-2.0
// Products inside a resident kernel: the bits of matvec_cuda.cu, with weights from the ring. Of a stage of 16 rows by
// 1,024 of k a warp takes 128, and its share of x straight from L2 into registers, a stage ahead.
#pragma once
#include "firstlight/ops/cuda_kernel.cuh"
#include "firstlight/ops/cuda_ptx.cuh"
#include "firstlight/ops/norm_cuda.cuh"
#include "firstlight/ops/resident_cuda.cuh"
#include "firstlight/ops/resident_ring_cuda.cuh"
#include "firstlight/ops/rope_cuda.cuh"

namespace firstlight::cuda {

inline constexpr int kStageSteps = 4;  ///< of 32 of k, of a warp

/// The block's shared memory beside the ring.
struct ResidentShared {
  MemoryBarrier full[kMostStages], empty[kMostStages];
  ResidentInstruction instructions[2], fetched;  ///< the consumers', this one and the next; the producer's
  float norm_parts[kMatvecRows][32];
  float sums[2][kResidentWarps][16 * kMatvecRows];  ///< of a unit: [part][warp][x row][w row]
};

struct Ring {
  std::byte* stages;
  std::byte* meeting;  ///< behind the stages: where attention's warps meet
  ResidentShared& shared;
  int n_stages;
  RingPosition at;
  __device__ std::byte* stage(int i) const { return stages + i * kStageBytes; }
  __device__ std::byte* stage() const { return stage(at.stage); }
  __device__ __forceinline__ void advance() { at.advance(n_stages); }
};

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

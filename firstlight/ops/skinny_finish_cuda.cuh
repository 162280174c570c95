// SPDX-License-Identifier: Apache-2.0
// What lies behind a skinny product's sums: the cluster's blocks meet, and rows are written.
#pragma once
#include "firstlight/ops/skinny_shared_cuda.cuh"

namespace firstlight::cuda {

__device__ __forceinline__ void meet_consumers() { asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory"); }

template <class Tile, Join kJoin>
struct SkinnyFinisher : SkinnyPlaces<Tile, kJoin> {
  using Places = SkinnyPlaces<Tile, kJoin>;
  using Places::column, Places::each, Places::bias_at, Places::take, Places::write, Places::write_twin;
  using Places::p, Places::share, Places::shared, Places::kPasses, Places::row, Places::own_row, Places::in_slab;

  /// Gives each sum to the block that finishes it. In a cluster once: a second tile would write over sums that a slower
  /// block has yet to read.
  __device__ __forceinline__ void hand_over(const LaneSums<Tile>& sums) {
    if constexpr (Tile::kSplit > 1) {
      cluster_wait();
    } else {
      meet_consumers();  // all have read the last tile's
    }
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
    for (int to = 0; to < Tile::kSplit; ++to) {
      float* const at = &shared.sums[share.rank][0][lane % 4 * 2][warp * 16 + lane / 4];
      const uint32_t there = Tile::kSplit > 1 ? address_at(shared_address(at), to) : 0;
#pragma unroll
      for (int s = 0; s < Tile::kSlabs; ++s) {
#pragma unroll
        for (int j = 0; j < Tile::kOwnSums; ++j) {
          const int row = j / 4 * 8 + j % 2,
                    i = (s * Tile::kOwnRows + row) * SkinnyShared<Tile, kJoin>::kPitch + j % 4 / 2 * 8;
          const float sum = sums[s][to * Tile::kOwnSums + j];
          if constexpr (Tile::kSplit > 1) {
            store_at(there + static_cast<uint32_t>(i) * sizeof(float), sum);
          } else {
            at[i] = sum;
          }
        }
      }
    }
    if constexpr (Tile::kSplit > 1) {
      cluster_arrive();
      cluster_wait();
    } else {
      meet_consumers();
    }
  }
  /// silu(gates) * ups, the slabs in turn.
  __device__ __forceinline__ void finish_silu(int tile) const {
#pragma unroll
    for (int s = 0; s + 1 < Tile::kSlabs; s += 2) {
      const int c = column(tile, s, 2);
      if (c >= p.n) continue;
      Four gate_bias{}, up_bias{};
      if (p.bias) each(c, [&](int e) { gate_bias[e] = bias_at(c + e), up_bias[e] = bias_at(p.n + c + e); });
#pragma unroll 1
      for (int pass = 0; pass < kPasses; ++pass) {
        if (row(pass) >= p.rows) break;
        Four gates, values;
        take(s, pass, gates);
        take(s + 1, pass, values);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float gate = gates[e] + gate_bias[e];
          values[e] = gate / (1 + __expf(-gate)) * (values[e] + up_bias[e]);
        }
        if (p.out) write(row(pass), c, values);
        if (p.twin) write_twin(row(pass), c, values);
      }
    }
  }
  /// What sums are added to, asked for ahead of them.
  __device__ __forceinline__ void ask(int tile) {
#pragma unroll
    for (int s = 0; s < Tile::kSlabs; ++s) {
      const int c = column(tile, s, 1);
#pragma unroll 1
      for (int pass = 0; pass < kPasses && row(pass) < p.rows && c < p.n; ++pass) {
        float* const to = &shared.old[s][own_row(pass)][in_slab()];
        const float* const from = p.out + row(pass) * p.out_stride + c;
        if (p.fours) {
          copy_async(shared_address(to), from, true);
        } else {
          each(c, [&](int e) { to[e] = from[e]; });
        }
      }
    }
    copy_async_commit();
  }
  __device__ __forceinline__ void finish(int tile) const {
    Four weight[Tile::kSlabs] = {}, bias[Tile::kSlabs] = {};
#pragma unroll
    for (int s = 0; s < Tile::kSlabs; ++s) {
      const int c = column(tile, s, 1);
      if (p.bias) each(c, [&](int e) { bias[s][e] = bias_at(c + e); });
      if (p.behind.weight) each(c, [&](int e) { weight[s][e] = widen(p.behind.weight[c + e]); });
    }
    if (kJoin == Join::add) copy_async_wait<0>();  // a thread reads what it has asked for
#pragma unroll 1
    for (int pass = 0; pass < kPasses; ++pass) {
      float squares = 0;
#pragma unroll
      for (int s = 0; s < Tile::kSlabs; ++s) {
        const int c = column(tile, s, 1);
        if (row(pass) >= p.rows || c >= p.n) continue;
        Four x;
        take(s, pass, x);
        float4 old{};
        if constexpr (kJoin == Join::add) {
          old = *reinterpret_cast<const float4*>(&shared.old[s][own_row(pass)][in_slab()]);
        }
        x[0] += old.x + bias[s][0], x[1] += old.y + bias[s][1], x[2] += old.z + bias[s][2], x[3] += old.w + bias[s][3];
        write(row(pass), c, x);
        if (!p.behind.weight) continue;
        each(c, [&](int e) { squares += x[e] * x[e]; });
#pragma unroll
        for (int e = 0; e < 4; ++e) x[e] *= weight[s][e];
        write_twin(row(pass), c, x);
      }
      if (!p.behind.weight) continue;
#pragma unroll
      for (int far = 1; far < 16; far *= 2) squares += __shfl_xor_sync(0xffffffffu, squares, far);
      if (threadIdx.x % 16 == 0) p.behind.squares[tile * kSkinnyRows + row(pass)] = squares;
    }
  }
};

}  // namespace firstlight::cuda
